# shellcheck shell=bash
# Sourced by the other scripts: Docker Compose, where `docker compose` is not there. Debian 12 has
# version 1, which knows another file format.

readonly compose_version=v5.0.2

# need_compose sets `compose` to the command that runs Docker Compose: the plugin of the docker
# command, or one that is built from source once and kept in the user's cache.
need_compose() {
	if docker compose version >/dev/null 2>&1; then
		compose=(docker compose)
		return
	fi
	local cache new
	cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/goshield
	compose=("$cache/docker-compose-$compose_version")
	[ ! -x "${compose[0]}" ] || return 0
	echo "building Docker Compose $compose_version (once)"
	mkdir -p "$cache"
	# Built beside and renamed, so that a build cut short leaves nothing.
	new=$(mktemp -d "$cache/compose.XXXXXX")
	GOBIN=$new GOFLAGS="" GOWORK=off CGO_ENABLED=0 go install -trimpath \
		-ldflags "-s -w -X github.com/docker/compose/v5/internal.Version=$compose_version" \
		"github.com/docker/compose/v5/cmd@$compose_version"
	mv "$new/cmd" "${compose[0]}"
	rmdir "$new"
}
