"""Appends an event to the outbox from a language that the outbox knows nothing of: the standard library and PostgreSQL's own protocol,
in one transaction with a table of the program's own. A second transaction does the same and rolls back.

    python3 strangers.py PORT USER DATABASE
"""

import json
import socket
import struct
import sys


class Session:
    def __init__(self, port, user, database):
        self.stream = socket.create_connection(("127.0.0.1", port), timeout=20).makefile("rwb")
        words = ["user", user, "database", database, "application_name", "strangers.py"]
        start = struct.pack("!i", 196608) + b"".join(word.encode() + b"\0" for word in words) + b"\0"
        self.stream.write(struct.pack("!i", len(start) + 4) + start)
        self.answer()

    def query(self, sql):
        text = sql.encode() + b"\0"
        self.stream.write(b"Q" + struct.pack("!i", len(text) + 4) + text)
        return self.answer()

    def answer(self):
        """Rows as lists of text, up to the server's word that it is ready."""
        self.stream.flush()
        rows, error = [], None
        while True:
            kind, length = struct.unpack("!ci", self.stream.read(5))
            message = self.stream.read(length - 4)
            if kind == b"R" and message[:4] != b"\0\0\0\0":
                raise RuntimeError("the server asks for a password")
            if kind == b"E":
                error = message.replace(b"\0", b" ").decode()
            if kind == b"E" and message.startswith(b"SFATAL"):
                raise RuntimeError(error)
            if kind == b"D":
                rows.append(list(columns(message)))
            if kind == b"Z":
                if error:
                    raise RuntimeError(error)
                return rows


def columns(message):
    (count,), place = struct.unpack("!h", message[:2]), 2
    for _ in range(count):
        (length,) = struct.unpack("!i", message[place : place + 4])
        place += 4
        yield None if length < 0 else message[place : place + length].decode()
        place += max(length, 0)


def ship(session, order, ending):
    payload = {
        "order": order,
        "parcels": -1,
        "express": False,
        "carrier": "POST",
        "weights": list(range(1, 21)),
        "note": "x",
        "shippedAt": "1969-12-31T23:59:59.999999Z",
    }
    session.query("BEGIN")
    session.query(f"INSERT INTO shop.orders VALUES ('{order}', 1)")
    rows = session.query(f"SELECT outbox.append('OrderShipped', '{order}', '{json.dumps(payload)}')")
    if int(rows[0][0]) < 1:
        raise RuntimeError(f"no id of the event: {rows}")
    session.query(ending)


def main():
    port, user, database = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    session = Session(port, user, database)
    ship(session, "o-3", "COMMIT")
    ship(session, "o-4", "ROLLBACK")


main()
