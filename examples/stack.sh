# What the examples' checks share: a database, a relay, and what must hold in the end. Sourced by check.sh; the real parts must run (`make
# test-examples` starts them), and BIN names the folder of the binaries.

: "${BIN:?folder with testbed, outbox-relay and orders}"
status=$("$BIN/testbed" status) || { echo "the real parts do not run: use make test-examples" >&2; exit 1; }
address() { sed -nE "s/^$1 +(127\.0\.0\.1:|http)/\1/p" <<<"$status" | tail -n 1; }
postgres=$(address PostgreSQL)
KAFKA_BOOTSTRAP=$(address Kafka)
SCHEMA_REGISTRY_URL=$(address registry)

logs=$(mktemp -d)
running=()
finish() {
    local code=$?
    for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    if [ -n "${name:-}" ]; then
        psql -XqAt "postgres://postgres@$postgres/postgres" -c "SELECT datname FROM pg_database WHERE datname LIKE '$name%'" |
            while read -r mine; do psql -Xq "postgres://postgres@$postgres/postgres" -c "DROP DATABASE $mine WITH (FORCE)" >&2; done || true
    fi
    if [ "$code" -eq 0 ]; then rm -rf "$logs"; else tail -n 5 "$logs"/*.log >&2 || true; echo "logs are in $logs" >&2; fi
    exit "$code"
}
trap finish EXIT

# database HINT: a new one, and the roles of a stranger's installation.
database() {
    name=$1_$(date +%s)_$$
    psql -Xq "postgres://postgres@$postgres/postgres" -v ON_ERROR_STOP=1 >&2 <<SQL
DO \$\$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'shop') THEN CREATE ROLE shop LOGIN; END IF; END \$\$;
CREATE DATABASE $name OWNER payment_outbox;
SQL
}
url() { echo "postgres://$1@$postgres/$name"; }
owner() { psql -Xq -v ON_ERROR_STOP=1 "$(url payment_outbox)" "$@" >&2; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# background NAME COMMAND...: runs until the end of the check; its pid is in $!.
background() {
    local log=$logs/$1.log
    shift
    "$@" >>"$log" 2>&1 &
    running+=("$!")
}

migrate() { DATABASE_URL=$(url payment_outbox) "$BIN/outbox-relay" migrate --relay relay "$@" >&2; }
relay_setup() { EVENTS=$1 KAFKA_BOOTSTRAP=$KAFKA_BOOTSTRAP SCHEMA_REGISTRY_URL=$SCHEMA_REGISTRY_URL "$BIN/outbox-relay" setup >&2; }
# relay_start CATALOGUE SOURCE: the relay as it is; its pid is in $relay.
relay_start() {
    background relay env EVENTS="$1" EVENT_SOURCE="$2" DATABASE_URL="$(url relay)" KAFKA_BOOTSTRAP="$KAFKA_BOOTSTRAP" \
        SCHEMA_REGISTRY_URL="$SCHEMA_REGISTRY_URL" ADMIN_LISTEN=127.0.0.1:0 "$BIN/outbox-relay" run
    relay=$!
}

answers() { [ "$(psql -XqAt "$(url postgres)" -c "$1")" = t ]; }
# eventually WHAT QUERY: waits until the query says true, 60 s at most.
eventually() {
    local begun=$SECONDS
    until answers "$2"; do
        if ((SECONDS - begun > 60)); then echo "FAILED: $1 did not come: $2" >&2; exit 1; fi
        sleep 0.2
    done
}
# verdict WHAT QUERY: the check.
verdict() {
    if ! answers "$2"; then echo "FAILED: $1: $2" >&2; exit 1; fi
    echo "ok: $1"
}
