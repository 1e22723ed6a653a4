# One image with every process of ours. `docker compose build` makes it; what runs in it is the command's choice.
#
# Binaries that were built elsewhere (a CI machine with a warm cache, a place without crates.io) can be used instead of
# compiling here: put them into `dist/` and say `BINARIES=prebuilt docker compose build`. They must come from Debian 12, or
# from a system with no newer glibc and OpenSSL 3.
ARG BINARIES=compiled

FROM rust:1.95-bookworm AS compiled
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential pkg-config libssl-dev zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# The downloaded crates and what was compiled stay in caches of the builder: a change of ours compiles ours alone.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --release --bins -p outbox-relay -p executor -p payment-service -p psp-simulator -p testbed \
    && mkdir /binaries \
    && cd target/release && cp outbox-relay executor payment-service psp-simulator testbed /binaries/

FROM scratch AS prebuilt
COPY dist/ /binaries/

FROM ${BINARIES} AS binaries

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="payment-outbox" \
      org.opencontainers.image.licenses="Apache-2.0"
# What the binaries are linked against (OpenSSL and zlib for the Kafka client), and the authorities behind https.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libssl3 zlib1g ca-certificates \
    && rm -rf /var/lib/apt/lists/*
# The contracts: the relay's catalogue and the Avro schemas that it names.
COPY schema/events.toml /etc/payment-outbox/schema/
COPY schema/avro/ /etc/payment-outbox/schema/avro/
COPY --from=binaries /binaries/ /usr/local/bin/
ENV EVENTS=/etc/payment-outbox/schema/events.toml
USER 65532:65532
