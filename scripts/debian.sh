# shellcheck shell=bash
# Sourced by the other scripts: installs the Debian packages they need.

# need COMMAND=PACKAGE[,PACKAGE]... installs the packages of every command (or
# file, if it begins with "/") that is not there. Services that Debian would
# start with them are not started.
need() {
	local want packages=()
	PATH=$PATH:/usr/sbin:/sbin
	for want in "$@"; do
		case ${want%%=*} in
			/*) [ -e "${want%%=*}" ] && continue ;;
			*) command -v "${want%%=*}" >/dev/null && continue ;;
		esac
		IFS=, read -r -a want <<<"${want#*=}"
		packages+=("${want[@]}")
	done
	[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
}

# install_packages PACKAGE... runs apt-get as root, or by sudo.
install_packages() (
	if ! command -v apt-get >/dev/null; then
		echo "not a Debian system: install what these packages hold: $*" >&2
		exit 1
	fi
	sudo=()
	if [ "$(id -u)" -ne 0 ]; then
		sudo=(sudo)
		[ -t 0 ] || sudo=(sudo -n)
		if ! "${sudo[@]}" true; then
			echo "these packages are missing, install them as root: apt-get install $*" >&2
			exit 1
		fi
	fi
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		# Asked by the packages' scripts: 101 forbids starting services.
		trap '"${sudo[@]}" rm -f $policy' EXIT
		printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee $policy >/dev/null
		"${sudo[@]}" chmod 755 $policy
	fi
	apt() {
		"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
			-o DPkg::Lock::Timeout=120 "$@" </dev/null
	}
	echo "installing $*"
	# Package lists may be missing or too old: refresh them only if need be.
	apt install --no-install-recommends "$@" >/dev/null 2>&1 && exit
	apt update >/dev/null
	apt install --no-install-recommends "$@"
)
