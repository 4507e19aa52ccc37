# docker build -t evidenceos:local .
#
# For BuildKit and the classic builder alike: no RUN --mount, no COPY --chmod, no heredocs.

# The tree, without the owner and the umask of the clone: they would count for the cache.
FROM rust:1.95-bookworm AS source
WORKDIR /src
COPY . .
RUN chown -R 0:0 . && chmod -R u=rwX,go=rX .

# What the dependencies are: the tree with every source emptied. It is the same as long as no
# manifest changes, so the layer that compiles them is taken from the cache.
FROM source AS manifests
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -path './.cargo/*' \
      ! -path './crates/*/build.rs' ! -path './crates/*/src/lib.rs' ! -path './crates/*/src/main.rs' -delete \
 && find . -type d -empty -delete \
 && find crates -name '*.rs' -exec sh -c 'for file; do echo "fn main() { }" >"$file"; done' sh {} +

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY --from=manifests /src .
RUN cargo build --locked --profile dist -p evidenceos --features kms-aws,kms-gcp,kms-azure \
 && rm -r crates
COPY --from=source /src .
# Cargo goes by the time of a file, and a clone may be older than the layer above.
RUN find crates -type f -exec touch {} + \
 && cargo build --locked --profile dist -p evidenceos --features kms-aws,kms-gcp,kms-azure \
 && mkdir -p /out/bin /out/data /out/anchor /out/share/man/man1 /out/share/bash-completion/completions \
 && cp target/dist/evidenceos /out/bin/ \
 && ln -s evidenceos /out/bin/evidenceos-daemon \
 && cd /out/share \
 && /out/bin/evidenceos man man/man1 \
 && /out/bin/evidenceos completions bash >bash-completion/completions/evidenceos \
 && /out/bin/evidenceos completions bash --daemon >bash-completion/completions/evidenceos-daemon

FROM gcr.io/distroless/cc-debian12:nonroot
ARG REVISION=unknown
LABEL org.opencontainers.image.title="EvidenceOS" \
      org.opencontainers.image.description="A verification kernel: certifies claims about a private holdout, however often it is asked" \
      org.opencontainers.image.version="2.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/bin /usr/local/bin
# To be mounted or copied out: no program in the image reads them.
COPY --from=build /out/share /usr/local/share
# No VOLUME: a directory that is not mounted must not look as if it lasted.
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build --chown=65532:65532 /out/anchor /anchor
# The other listeners stay on loopback until TLS is set up; metrics hold no secrets.
ENV EVIDENCEOS_DATA_DIR=/data \
    EVIDENCEOS_ANCHORS=/anchor/ \
    EVIDENCEOS_METRICS_LISTEN=0.0.0.0:9464
USER 65532:65532
EXPOSE 50051 8081 9464
HEALTHCHECK --interval=30s --timeout=3s --start-period=30s CMD ["/usr/local/bin/evidenceos-daemon", "healthcheck"]
# Called by this name it is the daemon, and hands words that the daemon has no command for (lab,
# keys, probe …) to the CLI.
ENTRYPOINT ["/usr/local/bin/evidenceos-daemon"]
