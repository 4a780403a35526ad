# The main job, on a CPU:    docker build -t datadiet .  &&  docker run --rm -v "$PWD/out:/work" datadiet
# On GPUs of NVIDIA:         docker build -t datadiet:cuda --build-arg JAX=cuda13 .  &&  docker run --rm --gpus all -v … datadiet:cuda
# Any other entry point:     docker run --rm -v "$PWD:/work" datadiet study --dataset folder:photos --image_size 64 --test_fraction 0.2
# What is written lies in /work: exps/ and mlflow.db. `--user "$(id -u):$(id -g)"` makes it yours.
FROM python:3.13-slim AS build
# git: the version of the package is counted from its tags.
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.13-slim
ARG JAX=""
COPY --from=build /wheels /wheels
# One resolution for both, so that JAX and its plugin fit each other; they bring CUDA with them.
RUN pip install --no-cache-dir /wheels/datadiet-*.whl ${JAX:+"jax[$JAX]"} && rm -rf /wheels
ENV HOME=/tmp/home
RUN mkdir -m 1777 /tmp/home /work
WORKDIR /work
VOLUME /work
ENTRYPOINT ["datadiet"]
CMD ["main"]
