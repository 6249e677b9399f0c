# The images of GoShield's own programs:
#
#   docker build --build-arg SERVICE=gateway -t goshield/gateway .
#
# SERVICE is lb, gateway, auth-service, echo-backend or goshield. An image holds one
# static program and nothing else: no shell, no libraries, no root.

# The tag names Go's minor release, as go.mod does, and Debian's: its point releases mend security, and a build is
# to have them without a change here. What it builds from is fixed by go.sum. scripts/offline-images makes an image of
# this very name where there is no registry.
FROM golang:1.26-bookworm AS build
ENV CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=local GOFLAGS=-trimpath\ -buildvcs=false
WORKDIR /src
# The standard library and the modules first: layers that a change of the code keeps.
RUN go build std
COPY sdk/go.mod sdk/go.sum sdk/
COPY internal/go.mod internal/go.sum internal/
COPY services/lb/go.mod services/lb/go.sum services/lb/
COPY services/gateway/go.mod services/gateway/go.sum services/gateway/
COPY services/auth-service/go.mod services/auth-service/go.sum services/auth-service/
COPY services/echo-backend/go.mod services/echo-backend/go.sum services/echo-backend/
COPY cmd/goshield/go.mod cmd/goshield/go.sum cmd/goshield/
RUN for module in services/* cmd/goshield; do (cd "$module" && go mod download) || exit; done
# The larger modules compiled, which only saves time: a list that is out of date does no harm.
RUN cd cmd/goshield && go build github.com/redis/go-redis/v9 github.com/alicebob/miniredis/v2 github.com/coder/websocket \
        github.com/prometheus/client_golang/prometheus/promhttp github.com/spf13/cobra github.com/HdrHistogram/hdrhistogram-go \
        go.uber.org/zap go.yaml.in/yaml/v4 google.golang.org/protobuf/proto || true
COPY sdk sdk
COPY internal internal
COPY services services
COPY cmd cmd
# All programs in one go, the same for each SERVICE, so that it is done once. The tag leaves out gRPC's trace
# pages, and a third of the program with them.
ARG VERSION=devel
RUN for module in services/* cmd/goshield; do \
        (cd "$module" && go build -tags grpcnotrace -o /out/ -ldflags "-s -w -X github.com/goshield/goshield/internal/service.Version=$VERSION" .) || exit; \
    done && \
    mkdir -p /owned/tokens && \
    for volume in authority lb gateway auth-service echo-backend redis redis-admin redis-exporter operator devices grafana; do \
        mkdir -p "/owned/$volume"; \
    done

FROM scratch
ARG SERVICE
ARG VERSION=devel
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="goshield/$SERVICE" \
      org.opencontainers.image.description="GoShield: the front door for fleets of devices on long-lived TCP connections" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT"
COPY --from=build /out/$SERVICE /goshield
# A new volume takes the owner of the directory that it is mounted on first.
COPY --from=build --chown=65532:65532 /owned/ /var/lib/goshield/
USER 65532:65532
ENTRYPOINT ["/goshield"]
