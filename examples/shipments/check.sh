#!/usr/bin/env bash
# Runs the example on the real parts and says whether what Confluent's deserializer reads is what the table says. PYTHON names an interpreter
# that has requirements.txt.
set -euo pipefail
cd "$(dirname "$0")"
. ../stack.sh
: "${PYTHON:?an interpreter with requirements.txt}"
database shipments

migrate --writer shop
owner -f shipments.sql
relay_setup events.toml
relay_start events.toml /shipments

export KAFKA_BOOTSTRAP SCHEMA_REGISTRY_URL CONSUMER_GROUP=readers-$name DATABASE_URL=$(url shop)
numbers=$(for n in $(seq 1 20); do echo "$name-$n"; done)
$PYTHON shipments.py ship $numbers
eventually "everything published" 'SELECT count(*) = 0 FROM outbox.pending'
verdict "twenty parcels, and not the one that was rolled back" "SELECT count(*) = 20 AND count(*) FILTER (WHERE number = 'never-shipped') = 0 FROM shipments.parcels"

# The topic may have parcels of earlier checks: those of this one are counted.
partitions=$("$PYTHON" - <<'P'
import os
from confluent_kafka import Consumer, TopicPartition
consumer = Consumer({"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"], "group.id": "count"})
places = [TopicPartition("shop-shipments", n) for n in range(3)]
print(sum(high - low for low, high in (consumer.get_watermark_offsets(place, timeout=20) for place in places)))
P
)
"$PYTHON" shipments.py read "$partitions" >"$logs/read.jsonl"
"$PYTHON" - "$logs/read.jsonl" $numbers <<'P'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
ours = {line["key"]: line for line in lines if line["key"] in sys.argv[2:]}
assert sorted(ours) == sorted(sys.argv[2:]), f"read {sorted(ours)}"
assert not any(line["key"] == "never-shipped" for line in lines), "what was rolled back was published"
for key, line in ours.items():
    wanted = {"number": key, "weightGrams": 1500, "carrier": "BIKE", "shippedAt": "2026-01-31 12:00:00.000001+00:00", "note": None}
    assert line["body"] == wanted and line["type"] == "ParcelShipped", line
print(f"ok: Confluent's deserializer reads what the table says, {len(ours)} of {len(lines)} records on the topic")
P
