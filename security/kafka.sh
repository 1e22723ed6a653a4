#!/usr/bin/env bash
# Users and rights in Kafka, least privilege: what each process needs, and nothing else. Run by an administrator; doing it again changes
# nothing but passwords.
#
#   security/kafka.sh users    makes the users (SCRAM-SHA-512); the password of each is in the file $PASSWORDS/<user>
#   security/kafka.sh acls     grants their rights; the brokers need an authorizer, such as StandardAuthorizer
#
# Kafka's own commands (kafka-acls.sh, kafka-configs.sh) must be in the PATH. On MSK users are secrets in the AWS Secrets Manager: `acls` alone.
set -euo pipefail

if [[ ! ${1:-} =~ ^(users|acls)$ ]]; then
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
    exit 64
fi

# Whom to ask, and as whom: COMMAND_CONFIG names a file of client properties.
: "${KAFKA_BOOTSTRAP:?host:port of a broker}"
admin=(--bootstrap-server "$KAFKA_BOOTSTRAP" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"})

# As in schema/events.toml and the processes' settings.
requests=${REQUESTS_TOPIC:-payment-order-requests}
results=${RESULTS_TOPIC:-psp-result-updates}
dead_letters=${DLQ_TOPIC:-$results.dlq}
executors=${EXECUTOR_GROUP:-executor}
payment_services=${PAYMENT_SERVICE_GROUP:-payment-service}

user() {
    local secret
    secret=$(umask 077 && mktemp)
    # In a file: an argument could be read by everybody on this machine.
    printf 'SCRAM-SHA-512=iterations=8192,password=%s\n' "$(cat "${PASSWORDS:?folder with one file per user}/$1")" >"$secret"
    kafka-configs.sh "${admin[@]}" --alter --entity-type users --entity-name "$1" --add-config-file "$secret" || { rm -f "$secret"; exit 1; }
    rm -f "$secret"
}

# allow USER OPERATION,... RESOURCE...
allow() {
    local who=$1 operation operations=()
    for operation in ${2//,/ }; do operations+=(--operation "$operation"); done
    shift 2
    kafka-acls.sh "${admin[@]}" --add --force --allow-principal "User:$who" "${operations[@]}" "$@"
}

case ${1:-} in
users)
    for name in payment-service executor relay-payments relay-executor setup; do user "$name"; done
    ;;
acls)
    # Reads results; copies what it puts into quarantine.
    allow payment-service Read,Describe --topic "$results" --group "$payment_services"
    allow payment-service Write,Describe --topic "$dead_letters"
    # Reads requests. What it says goes through its outbox.
    allow executor Read,Describe --topic "$requests" --group "$executors"
    # One relay per outbox, one topic each. It reads what it has written: the end of the topic, after a takeover.
    allow relay-payments Write,Read,Describe,DescribeConfigs --topic "$requests"
    allow relay-executor Write,Read,Describe,DescribeConfigs --topic "$results"
    # It is no member of a group; the client library asks for the coordinator of the name all the same.
    for relay in relay-payments relay-executor; do allow "$relay" Describe --group outbox-relay-tail; done
    # `outbox-relay setup`, run by whoever installs or upgrades.
    allow setup Create,Describe,DescribeConfigs --topic "$requests" --topic "$results" --topic "$dead_letters"
    ;;
esac
