#!/usr/bin/env bash
# Runs every block of commands of docs/adopt.md as it stands, in order, on the real parts: what is written there works.
set -euo pipefail
cd "$(dirname "$0")"
. ./stack.sh
REPOSITORY=$(realpath ..)
export REPOSITORY KAFKA_BOOTSTRAP SCHEMA_REGISTRY_URL PATH=$BIN:$PATH LOG=warn
database adopt
for role in owner:payment_outbox shop:shop relay:relay operator:operator; do
    export "$(tr '[:lower:]' '[:upper:]' <<<"${role%%:*}")_URL=$(url "${role##*:}")"
done
# The two databases of the circle; they go with the first, whose name they begin with.
for circle in payments executor; do
    psql -Xq "postgres://postgres@$postgres/postgres" -c "CREATE DATABASE ${name}_$circle OWNER payment_outbox" >&2
    for role in owner:payment_outbox relay:relay operator:operator; do
        export "$(tr '[:lower:]' '[:upper:]' <<<"${circle}_${role%%:*}")_URL=postgres://${role##*:}@$postgres/${name}_$circle"
    done
done
export PAYMENTS_URL=postgres://payment_service@$postgres/${name}_payments EXECUTOR_URL=postgres://executor@$postgres/${name}_executor
export SIMULATOR=127.0.0.1:$(free_port) API=127.0.0.1:$(free_port)
blocks=$logs/adopt.sh
{
    echo 'set -euo pipefail; trap "kill \$(jobs -p) 2>/dev/null || true; wait" EXIT'
    sed -n '/^```sh$/,/^```$/{/^```/!p}' "$REPOSITORY/docs/adopt.md"
    echo 'echo "ok: every command of docs/adopt.md"'
} >"$blocks"
commands=$(grep -c . "$blocks")
cd "$logs"
if ! timeout 300 bash "$blocks" >"$logs/adopt.log" 2>&1; then
    echo "FAILED: docs/adopt.md ($commands lines); its end:" >&2
    exit 1
fi
tail -n 1 "$logs/adopt.log"
