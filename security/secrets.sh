#!/bin/sh
# Makes the secrets that compose.yaml mounts, each in a file of its own: random, once. What is there already stays.
#
#   sh security/secrets.sh [FOLDER]        ./secrets if nothing is said
#
# The folder is closed to everybody else; the files in it are readable, because containers run as users that this machine does not know.
set -eu
folder=${1:-secrets}
(umask 077 && mkdir -p "$folder")
cd "$folder"
umask 022

# secret NAME [VALUE]
secret() {
    [ -s "$1" ] || printf '%s\n' "${2:-$(head -c 512 /dev/urandom | tr -dc 'a-zA-Z0-9' | head -c 32)}" >"$1"
}

# url NAME ROLE PASSWORD HOST DATABASE
url() {
    secret "$1" "postgres://$2:$(cat "$3")@$4:5432/$5"
}

for name in postgres owner payment_service executor operator console relay_payments relay_executor registry grafana adyen_webhook; do
    secret "${name}_password"
done
url owner_payments_url payment_outbox owner_password postgres-payments payments
url owner_executor_url payment_outbox owner_password postgres-executor executor
url payment_service_url payment_service payment_service_password postgres-payments payments
url console_payments_url console console_password postgres-payments payments
url operator_payments_url operator operator_password postgres-payments payments
url operator_executor_url operator operator_password postgres-executor executor
url executor_url executor executor_password postgres-executor executor
url relay_payments_url relay relay_payments_password postgres-payments payments
url relay_executor_url relay relay_executor_password postgres-executor executor
secret registry.properties "apicurio.datasource.password=$(cat registry_password)"

# What both sides of a webhook know.
secret stripe_webhook_secret "whsec_$(head -c 512 /dev/urandom | tr -dc 'a-zA-Z0-9' | head -c 32)"
secret adyen_hmac_key "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')"
secret adyen_webhook_auth "adyen:$(cat adyen_webhook_password)"
# The simulator takes any that look like one.
secret stripe_secret_key sk_test_local
secret adyen_api_key local-key
