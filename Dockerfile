# capmix with all captioners, scorers and the trainer, for GPUs and CPUs:
#   docker build --tag capmix --build-arg VERSION=0.2.0 .
#   docker run --rm --gpus all --volume "$PWD:/data" capmix caption shards --work work --source blip2 --model blip2
FROM python:3.11-slim

# openvino, which the embedded models use, needs libgomp.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/capmix
COPY constraints.txt ./
# The heaviest packages first: changes of capmix leave this layer in the cache.
RUN pip install --no-cache-dir --constraint constraints.txt torch torchvision transformers open_clip_torch

COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY packages packages
ARG VERSION=0.2.0a0
RUN SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION pip install --no-cache-dir --constraint constraints.txt \
      ./packages/capmix-tuxpaint '.[demo,hub,language,measure,open_clip,s3,train,transformers,view]'

# Files that the container writes belong to this user; --user "$(id -u):$(id -g)" makes them yours.
RUN useradd --create-home capmix
USER capmix
WORKDIR /data
ENTRYPOINT ["capmix"]
CMD ["--help"]
