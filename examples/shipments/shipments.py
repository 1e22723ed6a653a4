"""A service in Python on the outbox: ships parcels, and reads what it has told the world.

    shipments.py ship NUMBER...     a shipment and its event in one transaction, each; one more is begun and rolled back
    shipments.py read COUNT         so many events of the topic, decoded by Confluent's deserializer, one JSON object a line

Environment: DATABASE_URL, KAFKA_BOOTSTRAP, SCHEMA_REGISTRY_URL, CONSUMER_GROUP. Needs `psycopg[binary]` and
`confluent-kafka[avro,schemaregistry]`.
"""

import json
import os
import sys
import time
import uuid

import psycopg
from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

TOPIC = "shop-shipments"
LIMIT_SECONDS = 60


def ship(connection, number, changed_our_mind=False):
    with connection.transaction(force_rollback=changed_our_mind):
        connection.execute("INSERT INTO shipments.parcels (number, weight_grams) VALUES (%s, %s)", (number, 1_500))
        event = {"number": number, "weightGrams": 1_500, "carrier": "BIKE", "shippedAt": "2026-01-31T12:00:00.000001Z"}
        # The key decides the partition; the last argument is the trace that this belongs to, if there is one.
        connection.execute("SELECT outbox.append('ParcelShipped', %s, %s, NULL)", (number, json.dumps(event)))


def read(count):
    registry = SchemaRegistryClient({"url": os.environ["SCHEMA_REGISTRY_URL"]})
    deserialize = AvroDeserializer(registry)
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"],
            "group.id": os.environ["CONSUMER_GROUP"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([TOPIC])
    give_up_at = time.monotonic() + LIMIT_SECONDS
    try:
        while count > 0:
            if time.monotonic() > give_up_at:
                sys.exit(f"{count} events did not come within {LIMIT_SECONDS} s")
            record = consumer.poll(1.0)
            if record is None:
                continue
            if record.error():
                sys.exit(str(record.error()))
            headers = {name: value.decode() for name, value in record.headers()}
            body = deserialize(record.value(), SerializationContext(TOPIC, MessageField.VALUE))
            line = {"key": record.key().decode(), "id": str(uuid.UUID(headers["ce_id"])), "type": headers["ce_type"], "body": body}
            print(json.dumps(line, default=str), flush=True)
            count -= 1
    finally:
        consumer.close()


def main():
    match sys.argv[1:]:
        case ["ship", *numbers]:
            with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
                for number in numbers:
                    ship(connection, number)
                ship(connection, "never-shipped", changed_our_mind=True)
        case ["read", count]:
            read(int(count))
        case _:
            sys.exit(__doc__)


main()
