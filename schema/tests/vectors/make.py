"""Writes avro.json: bodies of our events as another Avro implementation (fastavro) writes them.

    pip install fastavro && python3 make.py

The tests read each body with our decoder, and expect our encoder to write the very same bytes: so fastavro reads ours.
"""

import io
import json
import pathlib
import uuid
from datetime import datetime, timedelta, timezone

import fastavro

here = pathlib.Path(__file__).parent
avro = here.parent.parent / "avro"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def at(micros):
    return EPOCH + timedelta(microseconds=micros)


def rfc3339(value):
    return value.isoformat().replace("+00:00", "Z")


def plain(record):
    """The JSON of the outbox: absent where null, times as RFC 3339, uuids as strings."""
    out = {}
    for key, value in record.items():
        if value is None:
            continue
        out[key] = rfc3339(value) if isinstance(value, datetime) else str(value) if isinstance(value, uuid.UUID) else value
    return out


ORDER = uuid.UUID("0190a6f0-5b1e-7c3a-9f00-0123456789ab")
CASES = [
    ("psp_result_update_event", "PspResultUpdateEvent", {
        "paymentOrderId": ORDER, "pspStatus": "SUCCESSFUL", "pspReference": "pi_3NqX", "eventTime": at(1_795_000_000_123_456),
        "errorCode": None, "errorMessage": None}),
    ("psp_result_update_event", "PspResultUpdateEvent", {
        "paymentOrderId": ORDER, "pspStatus": "FAILED", "pspReference": "pi_3NqX", "eventTime": at(1),
        "errorCode": "card_declined/insufficient_funds", "errorMessage": "Ihre Karte reicht nicht aus — 残高不足"}),
    ("psp_result_update_event", "PspResultUpdateEvent", {
        "paymentOrderId": ORDER, "pspStatus": "UNKNOWN", "pspReference": None, "eventTime": at(1_795_000_000_000_000),
        "errorCode": "EXPIRED", "errorMessage": None}),
    ("psp_result_update_event", "PspResultUpdateEvent", {
        "paymentOrderId": ORDER, "pspStatus": "PENDING", "pspReference": "", "eventTime": at(1_795_000_000_000_001),
        "errorCode": None, "errorMessage": "x" * 500}),
    ("payment_order_requested_event", "PaymentOrderRequestedEvent", {
        "paymentOrderId": ORDER, "psp": "STRIPE", "amountMinor": 9_007_199_254_740_993, "currency": "EUR",
        "paymentMethod": "pm_card_visa", "merchantReference": "order 17/ä", "expiresAt": at(1_795_003_600_000_000)}),
]

vectors = []
for file, event_type, record in CASES:
    schema = fastavro.parse_schema(json.loads((avro / f"{file}.avsc").read_text()))
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, record)
    again = fastavro.schemaless_reader(io.BytesIO(body.getvalue()), schema, schema)
    assert again == record, (again, record)
    vectors.append({"event_type": event_type, "json": plain(record), "body": body.getvalue().hex()})
(here / "avro.json").write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n")
