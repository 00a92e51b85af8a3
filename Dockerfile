# The service image: the base dependencies of pyproject.toml, service/ and models/. No training, no pip, no compiler.
#
#   docker build -t foldserve .
#   docker run --rm -p 8000:8000 foldserve                                serves the shipped models
#   docker run --rm -p 8000:8000 -v "$PWD/mine:/models:ro" foldserve      serves your model repository
#   docker run --rm -p 8000:8000 --read-only --cap-drop=ALL foldserve --log-level debug     arguments reach foldserve
#
# On a GPU (the extras bring the CUDA and cuDNN libraries; leave them out when BASE_IMAGE has them):
#   docker build --build-arg ONNXRUNTIME='onnxruntime-gpu[cuda,cudnn]' -t foldserve:gpu .
#   docker run --rm --gpus all -p 8000:8000 foldserve:gpu --providers CUDAExecutionProvider
#
# A package index of your own comes in from outside and leaves no trace in the image:
#   docker build --secret id=pip,src=$HOME/.config/pip/pip.conf -t foldserve .

# Any image with python3 >= 3.11 and its venv module. Both stages start from it: the virtual environment that one makes
# needs the same interpreter at the same path in the other.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# pip works from an environment of its own, so that the one that ships never holds it.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/venv

# Dependencies. Choosing another ONNX Runtime renames the requirement and its pin (same version), because installing the
# two side by side would overwrite the files of one with the other's.
ARG ONNXRUNTIME=onnxruntime
COPY constraints.txt pyproject.toml ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    sed -i "s/\"onnxruntime>=/\"${ONNXRUNTIME}>=/" pyproject.toml && grep -qF "\"${ONNXRUNTIME}>=" pyproject.toml \
 && sed -i "s/^onnxruntime==/${ONNXRUNTIME%%\[*}==/" constraints.txt \
 && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    > requirements.txt \
 && tools/bin/pip --python /opt/venv/bin/python install --no-compile -c constraints.txt -r requirements.txt

# Out goes what serving never opens: the dependencies' commands and test suites, C headers and sources, type stubs, the
# tools of ONNX Runtime that need the onnx package, and its copy for C programs (the Python module holds the runtime
# itself). CUDA libraries that came as wheels are gathered for the loader. Bytecode is compiled here, once, because the
# root file system may be read-only; `unchecked-hash` holds whatever happens to file times.
RUN mkdir /opt/venv/cuda && find /opt/venv/bin ! -type d ! -name 'python*' -delete \
 && cd /opt/venv/lib/python3*/site-packages \
 && rm -rf onnxruntime/datasets onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
 && rm -f onnxruntime/capi/libonnxruntime.so.* \
 && find . -depth -type d -name tests -exec rm -rf {} + \
 && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' -o -name '*.a' \) -delete \
 && find "$PWD" -path '*/nvidia/*/lib/*.so*' -exec ln -s -t /opt/venv/cuda {} + \
 && echo /opt/foldserve > foldserve.pth \
 && python3 -m compileall -q --invalidation-mode unchecked-hash . \
 && chmod -R a+rX,go-w /opt/venv

# The code, in a folder of its own: a change to it makes a new layer of some hundred kB, not of all dependencies.
# pyproject.toml also declares the command foldtrain, whose code is not here. The last line proves that nothing needed
# was thrown out.
COPY LICENSE README.md ./
COPY service/ service/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    tools/bin/pip --python /opt/venv/bin/python install --no-compile --no-deps --target /opt/foldserve . \
 && rm /opt/foldserve/bin/foldtrain \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/foldserve \
 && chmod -R a+rX,go-w /opt/foldserve \
 && /opt/foldserve/bin/foldserve --help > /dev/null && /opt/venv/bin/python -c 'import onnxruntime, service.app'

COPY models/ /models/
RUN chmod -R a+rX,go-w /models

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="foldserve" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/foldserve /opt/foldserve
COPY --from=build /models /models
ENV PATH=/opt/foldserve/bin:/opt/venv/bin:$PATH \
    LD_LIBRARY_PATH=/opt/venv/cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    FOLDSERVE_HOST=0.0.0.0 \
    FOLDSERVE_MODEL_REPOSITORY=/models \
    FOLDSERVE_PORT=8000
# A number, so that Kubernetes' runAsNonRoot can see that it is not root; it needs no entry in /etc/passwd.
USER 10001:10001
EXPOSE 8000
# It serves on for FOLDSERVE_DRAIN_GRACE_S, then requests under way finish, all within FOLDSERVE_DRAIN_LIMIT_S;
# `docker stop -t 30` gives it that long instead of 10 s.
STOPSIGNAL SIGTERM
# Live, not ready: whoever acts on this probe (Swarm, ECS, podman --health-on-failure) replaces the container, which
# mends a hung process, but neither a model that is UNAVAILABLE nor one still loading, while the others serve on.
# Load balancers ask /v2/health/ready. The port is read from FOLDSERVE_PORT: set that rather than --port in here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-c", "\
import http.client, os, sys; \
probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['FOLDSERVE_PORT']), timeout=4); \
probe.request('GET', '/v2/health/live'); \
sys.exit(probe.getresponse().status != 200)"]
# The exec form: foldserve is process 1 and gets the signals itself.
ENTRYPOINT ["foldserve"]
