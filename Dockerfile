# Three images from one file: build makes the environment, examples adds the two example workers, arbiter (the last, so the
# default) is the sidecar.
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /src
COPY .ci/constraints .ci/constraints
RUN python -m venv /opt/arbiter \
    && /opt/arbiter/bin/pip install --no-cache-dir --no-deps -r .ci/constraints/build.txt -r .ci/constraints/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY arbiter_sidecar arbiter_sidecar
RUN /opt/arbiter/bin/pip install --no-cache-dir --no-deps --no-build-isolation ./clients/python . \
    && /opt/arbiter/bin/pip check

FROM python:${PYTHON_VERSION}-slim AS base
# One user for the arbiter and its workers: the arbiter reads the memory of processes that are its own user's.
RUN groupadd --gid 10001 arbiter \
    && useradd --uid 10001 --gid arbiter --no-create-home --shell /usr/sbin/nologin arbiter \
    && install -d -o arbiter -g arbiter -m 0750 /run/arbiter /var/lib/arbiter /var/lib/workers
COPY --from=build /opt/arbiter /opt/arbiter
ENV PATH=/opt/arbiter/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ARBITER_ADDRESS=unix:/run/arbiter/arbiter.sock
USER 10001:10001

FROM base AS examples
USER 0:0
COPY .ci/constraints/examples.txt /tmp/examples.txt
RUN /opt/arbiter/bin/pip install --no-cache-dir --no-deps -r /tmp/examples.txt
WORKDIR /app
COPY examples examples
USER 10001:10001

FROM base AS arbiter
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["arbiter-sidecar", "health"]
ENTRYPOINT ["arbiter-sidecar"]
CMD ["serve", "--socket", "/run/arbiter/arbiter.sock", "--state-dir", "/var/lib/arbiter"]
