# The service and the shipped weights, nothing else: no compiler, no build tools, no root.
#   docker build -t resnet-service .
# torch brings its CUDA libraries (about 5 GB). A CPU serves without torch, and an image for it needs none:
#   docker build -t resnet-service:cpu --build-arg WITH_TORCH=no .

# The newest under this tag; --build-arg BASE_IMAGE=python:3.12-slim-bookworm@sha256:... is the same one for ever.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# Only the list of dependencies, so that another change of pyproject.toml does not install torch again.
FROM ${BASE_IMAGE} AS requirements
ARG WITH_TORCH=yes
COPY pyproject.toml /build/
COPY tools/requirements.py /build/tools/
RUN python3 /build/tools/requirements.py $([ "$WITH_TORCH" = yes ] || echo --cpu-only) >/build/requirements.txt

FROM ${BASE_IMAGE} AS dependencies
ARG PIP_ARGS=""
# Not the one that the base image happens to have: what pip takes must not change with it.
ARG PIP_VERSION=26.3
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir "pip==${PIP_VERSION}" ${PIP_ARGS}
COPY constraints.txt /build/
COPY --from=requirements /build/requirements.txt /build/
RUN /opt/venv/bin/pip install --no-cache-dir --constraint /build/constraints.txt --requirement /build/requirements.txt ${PIP_ARGS}

# The list of what is in /opt/venv, in the CycloneDX format, by a tool that stays out of it.
FROM dependencies AS sbom
ARG PIP_ARGS=""
RUN python3 -m venv /opt/cyclonedx && \
    /opt/cyclonedx/bin/pip install --no-cache-dir --constraint /build/constraints.txt cyclonedx-bom ${PIP_ARGS}
COPY pyproject.toml /build/
RUN /opt/cyclonedx/bin/cyclonedx-py environment --pyproject /build/pyproject.toml --output-reproducible \
    --output-file /build/sbom.cdx.json /opt/venv/bin/python

# Readable for the user below, whatever the umask was that they were checked out under.
FROM ${BASE_IMAGE} AS weights
COPY weights /weights
RUN chmod -R a+rX /weights

# app/, model/ and bin/resnet land in /srv/resnet, compiled to bytecode; weights/ goes beside them, where app/ looks for it.
FROM dependencies AS project
ARG PIP_ARGS=""
WORKDIR /build/project
COPY . ./
# For what builds it, too: pip makes that an environment of its own, where older ones look at the first of the two
# variables and newer ones at the second, and none at --constraint.
RUN PIP_CONSTRAINT=/build/constraints.txt PIP_BUILD_CONSTRAINT=/build/constraints.txt \
    /opt/venv/bin/pip install --no-cache-dir --no-deps --target /srv/resnet . ${PIP_ARGS}

FROM ${BASE_IMAGE}
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin resnet
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=sbom /build/sbom.cdx.json /srv/resnet/sbom.cdx.json
COPY --from=weights /weights /srv/resnet/weights
COPY --from=project /srv/resnet /srv/resnet
# NumPy's OpenBLAS would start a thread a core in each process, for nothing: what is large torch or OpenVINO computes, in
# threads of their own. On a host of hundreds of cores they would take memory, and what pids_limit allows.
ENV PATH=/srv/resnet/bin:/opt/venv/bin:$PATH \
    PYTHONPATH=/srv/resnet \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    OPENBLAS_NUM_THREADS=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RESNET_HOST=0.0.0.0 \
    RESNET_DRAIN_DELAY_S=3 \
    RESNET_LOG_FORMAT=json
WORKDIR /srv/resnet
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# On a GPU all graphs are recorded before ready, and cuDNN looks for its quickest kernels, a minute in each of two ways
# and of up to three precisions: minutes are no failure. The first success ends the period, and a start that fails ends
# by itself: only one that hangs is seen later for it.
HEALTHCHECK --interval=10s --timeout=10s --start-period=900s --retries=3 CMD ["resnet", "healthcheck"]
# docker build --build-arg REVISION=$(git rev-parse HEAD) ...; here, so that another one invalidates no layer
ARG REVISION=unknown
ENV RESNET_REVISION=${REVISION}
LABEL org.opencontainers.image.title=resnet-service org.opencontainers.image.revision=${REVISION}
ENTRYPOINT ["resnet"]
CMD ["serve"]
