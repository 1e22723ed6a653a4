#!/usr/bin/env bash
# Run by the PostgreSQL image when its volume is new: roles and databases, with the passwords from the files that are mounted.
# A shell of its own, also if it is sourced: the passwords are in the environment of one psql, and nowhere else.
(
    set -eu
    for file in /run/secrets/*_password; do
        name=$(basename "$file" | tr '[:lower:]' '[:upper:]')
        export "$name=$(cat "$file")"
    done
    psql --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname postgres -f /etc/payment-outbox/roles.sql
)
