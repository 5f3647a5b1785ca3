# Images of Talkoo. `control` runs everything but training and needs no torch; `train` is for agents and validators;
# `storage` is an S3 server for clusters that have none; `control-comet` is `control` with CometBFT, for ledgers whose engine
# it is. All run as user 10001 with a read-only root file system.
ARG PYTHON=docker.io/library/python:3.11-slim
ARG GO=docker.io/library/golang:1.26

FROM ${PYTHON} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_NO_PROGRESS=1 UV_LINK_MODE=copy
RUN python3 -m venv /opt/build
COPY requirements/bootstrap.txt requirements/build.txt requirements/sbom.txt /requirements/
RUN /opt/build/bin/python -m pip install --quiet --require-hashes -r /requirements/bootstrap.txt \
 && /opt/build/bin/uv pip install --quiet --python /opt/build/bin/python --require-hashes -r /requirements/build.txt \
 && python3 -m venv --without-pip /opt/sbom \
 && /opt/build/bin/uv pip install --quiet --python /opt/sbom/bin/python --require-hashes -r /requirements/sbom.txt
# `list-parts FOLDER` writes what an environment holds, with versions and licences, as CycloneDX.
RUN printf '#!/bin/sh\nexec /opt/sbom/bin/cyclonedx-py environment --no-validate --output-reproducible --of JSON -o "$1/sbom.cdx.json" "$1/bin/python"\n' \
    > /usr/local/bin/list-parts && chmod 755 /usr/local/bin/list-parts

FROM tools AS build
COPY requirements/slim.txt /requirements/
RUN python3 -m venv --without-pip /opt/talkoo \
 && /opt/build/bin/uv pip install --quiet --python /opt/talkoo/bin/python --require-hashes -r /requirements/slim.txt
COPY pyproject.toml README.md LICENSE /source/
COPY proto /source/proto
COPY src /source/src
COPY services /source/services
COPY operator /source/operator
COPY examples /source/examples
RUN cd /source && PATH=/opt/build/bin:$PATH /opt/build/bin/python -m hatchling build -t wheel -d /wheels \
 && /opt/build/bin/uv pip install --quiet --python /opt/talkoo/bin/python --no-deps --no-index /wheels/*.whl \
 && list-parts /opt/talkoo

FROM build AS build-train
COPY requirements/train.txt /requirements/
RUN /opt/build/bin/uv pip install --quiet --python /opt/talkoo/bin/python --require-hashes -r /requirements/train.txt \
 && list-parts /opt/talkoo

FROM tools AS build-storage
COPY requirements/storage.txt /requirements/
RUN python3 -m venv --without-pip /opt/storage \
 && /opt/build/bin/uv pip install --quiet --python /opt/storage/bin/python --require-hashes -r /requirements/storage.txt \
 && list-parts /opt/storage

FROM ${GO} AS build-comet
COPY tests/comet/go /source
RUN cd /source && CGO_ENABLED=0 GOFLAGS=-mod=readonly \
    go build -trimpath -ldflags "-s -w" -o /cometbft github.com/cometbft/cometbft/cmd/cometbft

FROM ${PYTHON} AS base
RUN mkdir -p /var/lib/talkoo && chown 10001:10001 /var/lib/talkoo
# USER: libraries ask for a name, and the id has none.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/var/lib/talkoo USER=talkoo
USER 10001:10001
WORKDIR /var/lib/talkoo

FROM base AS storage
COPY --from=build-storage /opt/storage /opt/storage
ENV PATH=/opt/storage/bin:/usr/local/bin:/usr/bin:/bin
ENTRYPOINT ["/opt/storage/bin/weed"]

FROM base AS train
COPY --from=build-train /opt/talkoo /opt/talkoo
ENV PATH=/opt/talkoo/bin:/usr/local/bin:/usr/bin:/bin
ENTRYPOINT ["/opt/talkoo/bin/python"]

FROM base AS control
COPY --from=build /opt/talkoo /opt/talkoo
ENV PATH=/opt/talkoo/bin:/usr/local/bin:/usr/bin:/bin
ENTRYPOINT ["/opt/talkoo/bin/python"]

FROM control AS control-comet
COPY --from=build-comet /cometbft /usr/local/bin/cometbft

# Without --target: control.
FROM control
