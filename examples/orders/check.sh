#!/usr/bin/env bash
# Runs the example on the real parts and says whether it kept its word: every order has exactly one invoice, although the relay is killed in
# the middle and every event is published a second time.
set -euo pipefail
cd "$(dirname "$0")"
. ../stack.sh
database orders

migrate --writer shop --operator operator
owner -f orders.sql
relay_setup events.toml
relay_start events.toml /shop

export LISTEN=127.0.0.1:$(free_port) KAFKA_BOOTSTRAP CONSUMER_GROUP=billing-$name DATABASE_URL=$(url shop)
background orders "$BIN/orders"
place() { curl -sS --fail --max-time 10 --retry 20 --retry-connrefused --retry-delay 1 "http://$LISTEN/orders" -H 'Content-Type: application/json' -d "{\"customer\":\"c$1\",\"total_minor\":$1}" >/dev/null; }
for n in $(seq 1 50); do
    place "$n"
    if [ "$n" -eq 25 ]; then
        kill -KILL "$relay"
        relay_start events.toml /shop
    fi
done
eventually "50 invoices" 'SELECT count(*) = 50 FROM shop.invoices'

# Once more, all of them: consumers must not notice.
DATABASE_URL=$(url operator) "$BIN/outbox-relay" replay --since 2000-01-01T00:00:00Z --execute --operator check --note 'the example' >&2
eventually "50 events that came again" 'SELECT count(DISTINCT event_id) >= 50 FROM shop.seen_again'

verdict "one invoice per order" 'SELECT count(*) = 50 AND count(DISTINCT order_id) = 50 AND sum(total_minor) = 1275 FROM shop.invoices'
verdict "nothing waits" 'SELECT count(*) = 0 FROM outbox.pending'
