#!/usr/bin/env bash
# Install what is missing, from the package registries alone. Groups: build, demo, test, ceph, bench.
# Debian packages go to the system (as root, or through sudo); Python and Node packages go below
# build/ and touch nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."
# One at a time: two tests that start at once may want the same, and npm leaves half a tree then.
mkdir -p build
exec 9>build/install.lock
flock 9

missing_debian() {
	local package
	for package in "$@"; do
		dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' ||
			echo "$package"
	done
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "install.sh: this needs root; run as root: $*" >&2
		exit 1
	fi
}

debian() {
	local packages
	command -v dpkg-query >/dev/null || {
		echo "install.sh: not Debian; install the equivalents of: $*" >&2
		return 0
	}
	packages=$(missing_debian "$@")
	[ -z "$packages" ] && return 0
	echo "installing:" $packages
	# The lists may be missing or old: refresh them once and try again before giving up.
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive as_root apt-get install -qq -y --no-install-recommends $packages \
		>/dev/null 2>&1 || {
		as_root apt-get update -qq
		DEBIAN_FRONTEND=noninteractive as_root apt-get install -qq -y --no-install-recommends $packages \
			>/dev/null
	}
}

# A virtual environment in build/venv. A package that cannot be had is reported, not fatal: the
# tests that need it are skipped by name.
python() {
	local package
	[ -x build/venv/bin/python ] || python3 -m venv build/venv
	for package in "$@"; do
		build/venv/bin/python -m pip install --quiet --disable-pip-version-check "$package" ||
			echo "install.sh: no $package; tests that need it will be skipped" >&2
	done
}

# npm writes its own list last: a tree of which it is missing was not finished.
node() {
	mkdir -p build/node
	grep -qs "\"node_modules/$1\"" build/node/node_modules/.package-lock.json && return 0
	npm install --silent --no-audit --no-fund --prefix build/node "$1" >/dev/null ||
		echo "install.sh: no $1" >&2
}

# A program from crates.io in build/cargo/bin. Unoptimized: compiling takes longer than running it.
crate() { # NAME VERSION
	[ -x "build/cargo/bin/$1" ] && return 0
	CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --root build/cargo --version "$2" "$1" \
		>/dev/null 2>&1 || echo "install.sh: no $1; tests that need it will be skipped" >&2
}

have_python() {
	[ -x build/venv/bin/python ] && build/venv/bin/python -c "import $1" 2>/dev/null
}

for group in "$@"; do
	case $group in
	build)
		debian gcc make pkg-config libc6-dev libfuse3-dev fuse3 liblmdb-dev libcjson-dev libzstd-dev \
			libssl-dev libcurl4-openssl-dev libexpat1-dev uthash-dev
		;;
	demo)
		debian python3 python3-venv
		command -v npm >/dev/null || debian npm
		have_python duckdb || python duckdb
		node vega-datasets
		;;
	test)
		debian libcmocka-dev clang clang-format clang-tidy libclang-rt-14-dev llvm sqlite3 attr strace \
			procps python3 python3-venv git man-db mandoc
		debian rsync cpio zip unzip vim ed ccache inotify-tools # what the tests of tools compare with a disk
		command -v npm >/dev/null || debian npm
		have_python duckdb || python duckdb
		have_python pandas || python pandas
		have_python pyarrow || python pyarrow
		have_python deltalake || python deltalake
		have_python pyiceberg || python 'pyiceberg[sql-sqlite]'
		have_python polars || python polars
		have_python "nbclient, ipykernel, nbconvert" || python nbclient ipykernel nbconvert
		node vega-datasets
		crate pjdfstest 0.2.2
		;;
	ceph) # a real S3 engine, and two that must be refused
		debian radosgw ceph-mon ceph-osd ceph-common curl python3 python3-venv
		debian faketime || true
		command -v npm >/dev/null || debian npm
		# Newer ones know If-Match, though not atomically.
		have_python "moto.server, moto; assert moto.__version__ == '5.0.28'" || python 'moto[server,s3]==5.0.28'
		node s3rver
		;;
	bench)
		debian python3 python3-venv btrfs-progs curl s3fs rclone radosgw ceph-mon ceph-osd ceph-common
		command -v npm >/dev/null || debian npm
		have_python duckdb || python duckdb
		node vega-datasets
		;;
	*)
		echo "install.sh: no group $group" >&2
		exit 2
		;;
	esac
done
