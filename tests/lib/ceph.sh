#!/usr/bin/env bash
# A Ceph of the test's own on loopback: monitor, OSDs, and S3 gateways (radosgw), without systemd or
# containers. Everything lies below DIR and ends with `stop`.
#   tests/lib/ceph.sh start DIR [OSDS [GATEWAYS]]   default: one OSD in memory, one gateway
#   tests/lib/ceph.sh stop DIR
#   tests/lib/ceph.sh bucket DIR NAME               make a bucket
#   tests/lib/ceph.sh user DIR NAME                 make a user who owns nothing: keys NAMEaccess, NAMEsecretkey
#   tests/lib/ceph.sh gateway DIR NUMBER            start a gateway that was killed, on the same port
# Gateways listen on LAKE_CEPH_ADDRESS (127.0.0.1).
# `start` writes DIR/env: lines LAKE_TEST_ENDPOINT=, LAKE_TEST_ENDPOINTS= (all), AWS_ACCESS_KEY_ID=,
# AWS_SECRET_ACCESS_KEY=. Process ids are in DIR/run/*.pid. With three OSDs or more each object lies on
# three and on disk (two suffice to go on), so that one may be killed.
set -eu
: "${LAKE_CEPH_ADDRESS:=127.0.0.1}"

daemon_pid() { cat "$1" 2>/dev/null || true; }

free_ports() { # COUNT: neighbours, all free
	python3 - "$1" <<'P'
import random, socket, sys
count = int(sys.argv[1])
while True:
    base = random.randrange(20000, 30000)
    held = []
    try:
        for port in range(base, base + count):
            s = socket.socket()
            held.append(s)
            s.bind(("127.0.0.1", port))
    except OSError:
        continue
    finally:
        for s in held:
            s.close()
    print(base)
    break
P
}

# What is not usual here, and why: paxos_propose_interval (the start would take 12 s), tcp_nodelay (a
# small GET would take 44 ms), cephx (radosgw hangs without).
write_config() { # DIR OSDS MONITOR_PORT FSID
	local size=1 least=1 kind=memstore
	if [ "$2" -ge 3 ]; then
		size=3 least=2 kind=bluestore
	fi
	cat >"$1/ceph.conf" <<C
[global]
fsid = $4
mon_initial_members = a
mon_host = [v2:127.0.0.1:$3]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
public_network = 127.0.0.0/8
ms_bind_msgr1 = false
keyring = $1/keyring
run_dir = $1/run
admin_socket = $1/run/\$name.asok
pid_file = $1/run/\$name.pid
log_file = $1/log/\$name.log
osd_pool_default_size = $size
osd_pool_default_min_size = $least
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
mon_data_avail_warn = 2
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
[mon]
mon_data = $1/mon
auth_allow_insecure_global_id_reclaim = false
[osd]
osd_data = $1/osd.\$id
osd_objectstore = $kind
memstore_device_bytes = 8589934592
bluestore_block_size = 10737418240
bluestore_block_db_create = false
bluestore_block_wal_create = false
osd_memory_target = 1073741824
osd_class_update_on_start = true
osd_class_load_list = *
osd_class_default_list = *
osd_heartbeat_grace = 4
osd_heartbeat_interval = 1
[client]
rgw_data = $1/rgw.\$id
rgw_enable_usage_log = false
rgw_thread_pool_size = 64
rgw_dynamic_resharding = false
rgw_gc_obj_min_wait = 60
rgw_crypt_require_ssl = false
rgw_dns_name = s3.test
C
}

write_keyring() { # DIR
	local key="ceph-authtool $1/keyring --gen-key" id
	ceph-authtool --create-keyring "$1/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
	$key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' --cap mds 'allow *'
	for id in 0 1 2 3; do
		$key -n "osd.$id" --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
		$key -n "client.rgw.$id" --cap mon 'allow rw' --cap osd 'allow rwx' --cap mgr 'allow rw'
	done
}

start_gateway() { # DIR ID PORT
	local tries=600
	radosgw -c "$1/ceph.conf" -n "client.rgw.$2" --rgw_frontends="beast endpoint=$LAKE_CEPH_ADDRESS:$3 tcp_nodelay=1"
	until curl -s --noproxy '*' -o /dev/null "http://$LAKE_CEPH_ADDRESS:$3/"; do
		tries=$((tries - 1))
		if [ $tries = 0 ]; then
			echo "ceph.sh: no gateway on port $3; see $1/log" >&2
			return 1
		fi
		sleep 0.1
	done
}

start_osd() { # DIR ID
	local uuid
	uuid=$(cat /proc/sys/kernel/random/uuid)
	mkdir -p "$1/osd.$2"
	ceph -c "$1/ceph.conf" --connect-timeout 20 osd new "$uuid" >/dev/null
	ceph-osd -c "$1/ceph.conf" -i "$2" --mkfs --osd-uuid "$uuid" >/dev/null 2>&1
	ceph-osd -c "$1/ceph.conf" -i "$2" >/dev/null 2>"$1/log/osd.$2.start"
}

start() { # DIR OSDS GATEWAYS
	local directory=$1 osds=$2 gateways=$3 fsid port id endpoints=
	fsid=$(cat /proc/sys/kernel/random/uuid)
	mkdir -p "$directory/mon" "$directory/run" "$directory/log"
	port=$(free_ports $((gateways + 1)))
	write_config "$directory" "$osds" "$port" "$fsid"
	write_keyring "$directory"
	monmaptool -c "$directory/ceph.conf" --create --addv a "[v2:127.0.0.1:$port]" --fsid "$fsid" \
		--set-min-mon-release 16 "$directory/monmap" >/dev/null
	ceph-mon -c "$directory/ceph.conf" --mkfs -i a --monmap "$directory/monmap" --keyring "$directory/keyring"
	ceph-mon -c "$directory/ceph.conf" -i a
	for ((id = 0; id < osds; id++)); do
		start_osd "$directory" $id
	done
	for ((id = 0; id < gateways; id++)); do # one by one: the first makes the pools
		start_gateway "$directory" $id $((port + 1 + id))
		endpoints="$endpoints${endpoints:+ }http://$LAKE_CEPH_ADDRESS:$((port + 1 + id))"
	done
	user "$directory" test
	cat >"$directory/env" <<V
LAKE_TEST_ENDPOINT=${endpoints%% *}
LAKE_TEST_ENDPOINTS="$endpoints"
AWS_ACCESS_KEY_ID=testaccess
AWS_SECRET_ACCESS_KEY=testsecretkey
V
}

stop() { # DIR
	local file pid
	for file in "$1"/run/client.rgw.*.pid "$1"/run/osd.*.pid "$1"/run/mon.*.pid; do
		pid=$(daemon_pid "$file")
		[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
	done
	for file in "$1"/run/*.pid; do
		pid=$(daemon_pid "$file")
		while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
	done
	rm -rf "$1"
}

bucket() { # DIR NAME
	(
		# shellcheck disable=SC1091
		. "$1/env"
		# The SHA-256 of no body: curl signs the header, but does not make it.
		curl -sf --noproxy '*' -o /dev/null --aws-sigv4 aws:amz:us-east-1:s3 \
			-H "x-amz-content-sha256: $(printf '' | sha256sum | cut -d' ' -f1)" \
			--user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -X PUT "$LAKE_TEST_ENDPOINT/$2"
	)
}

user() { # DIR NAME
	radosgw-admin -c "$1/ceph.conf" user create --uid="$2" --display-name="$2" \
		--access-key="$2access" --secret-key="$2secretkey" >/dev/null 2>&1
}

gateway() { # DIR NUMBER
	local endpoints
	# shellcheck disable=SC1091
	. "$1/env"
	read -ra endpoints <<<"$LAKE_TEST_ENDPOINTS"
	start_gateway "$1" "$2" "${endpoints[$2]##*:}"
}

case ${1:-} in
start)
	for program in radosgw ceph-mon ceph-osd ceph; do
		command -v $program >/dev/null || {
			echo "ceph.sh: no $program; tests/lib/install.sh ceph" >&2
			exit 3
		}
	done
	mkdir -p "$2"
	directory=$(realpath "$2")
	start "$directory" "${3:-1}" "${4:-1}" || {
		stop "$directory"
		exit 1
	}
	;;
stop) stop "$(realpath "$2")" ;;
bucket) bucket "$2" "$3" ;;
user) user "$(realpath "$2")" "$3" ;;
gateway) gateway "$(realpath "$2")" "$3" ;;
*)
	sed -n '2,14s/^# //p' "$0" >&2
	exit 2
	;;
esac
