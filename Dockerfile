# The service without torch, onnx, compilers or caches.
#
#   docker build --target service -t convserve .
#   docker build --target gpu -t convserve:gpu .
#
# Pin the base by digest for a release: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore


FROM base AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY contract contract
COPY convserve convserve
COPY service service
COPY training training
COPY models/efficientnet_lite0 models/efficientnet_lite0
COPY models/digits models/digits
COPY models/repository.toml models/repository.toml
COPY examples examples
RUN pip wheel --no-deps --wheel-dir /wheels .


# Dependencies change less often than the code, so they come first and stay cached.
FROM base AS environment
RUN python -m venv --without-pip /opt/convserve
COPY requirements/service.lock /requirements/
RUN pip --python /opt/convserve/bin/python install --require-hashes --only-binary :all: \
        -r /requirements/service.lock
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/convserve/bin/python install --no-deps /wheels/*.whl \
 && find /opt/convserve -type d -name tests -prune -exec rm -rf {} +


FROM ${PYTHON_IMAGE} AS runtime
# The running service installs nothing, so it needs no installer.
RUN rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/site-packages/setuptools* \
           /usr/local/lib/python3*/site-packages/wheel* /usr/lib/python3/dist-packages/pip* \
           /usr/local/bin/pip* /usr/bin/pip* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin convserve
ENV PATH=/opt/convserve/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    CONVSERVE_HOST=0.0.0.0 \
    CONVSERVE_PORT=8000
COPY deploy/docker/health.py /usr/local/lib/convserve/
WORKDIR /srv
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-I", "-S", "/usr/local/lib/convserve/health.py"]
ENTRYPOINT ["convserve"]
CMD ["serve"]


FROM runtime AS service
COPY --from=environment /opt/convserve /opt/convserve


# After `service`, because the classic builder makes every stage in front of its target.
FROM base AS environment-gpu
RUN python -m venv --without-pip /opt/convserve
COPY requirements/gpu.lock /requirements/
RUN pip --python /opt/convserve/bin/python install --require-hashes --only-binary :all: \
        --no-deps -r /requirements/gpu.lock
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/convserve/bin/python install --no-deps /wheels/*.whl \
 && find /opt/convserve -type d -name tests -prune -exec rm -rf {} +


FROM runtime AS gpu
# Tells the NVIDIA container runtime what to mount; CUDA and cuDNN themselves come from PyPI.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=environment-gpu /opt/convserve /opt/convserve


# What a plain `docker build .` makes.
FROM service
