# The daemon in a container. Without more it runs the built-in handlers on an embedded PostgreSQL:
#
#   docker build -t orchestrator .
#   docker run --rm -p 9090:9090 -v orchestrator:/var/lib/orchestratord orchestrator
#
# With a server of your own and your handlers:
#
#   docker run -e DATABASE_URL=postgresql://... -e ORCHESTRATOR__HANDLERS__MODULES=app.handlers \
#       -v ./app:/srv/app orchestrator

FROM python:3.13-slim AS build
WORKDIR /src
RUN python3 -m venv /opt/orchestrator
COPY setup.cfg pyproject.toml LICENSE README.md ./
COPY orchestrator orchestrator
COPY schema schema
RUN /opt/orchestrator/bin/python -m pip install --no-cache-dir '.[embedded]'

FROM python:3.13-slim
# initdb looks its user up, so the id needs an entry.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /srv --shell /usr/sbin/nologin \
        orchestrator \
    && install -d -o orchestrator -g orchestrator -m 700 /var/lib/orchestratord
COPY --from=build /opt/orchestrator /opt/orchestrator
COPY conf/orchestrator.toml /srv/conf/orchestrator.toml
# Not only this container's own processes shall read metrics and health; state lies in the volume.
ENV PATH=/opt/orchestrator/bin:$PATH \
    ORCHESTRATOR__WEB__BIND=0.0.0.0:9090 \
    ORCHESTRATOR__NODE__STATE_DIRECTORY=/var/lib/orchestratord
WORKDIR /srv
VOLUME /var/lib/orchestratord
USER orchestrator
EXPOSE 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/livez', timeout=2)"]
CMD ["orchestratord", "-c", "conf/orchestrator.toml"]
