#!/usr/bin/env bash
# The object store on real S3 engines: the contract's suite and whole lakes on Ceph; engines without
# compare-and-swap are refused; certificates are checked; what is wrong with a clock, a key or its rights is
# said, and no secret is.
# shellcheck source=tests/lib/tap.sh
source "$(dirname "$0")/../lib/tap.sh"
"$root/tests/lib/install.sh" ceph >"$scratch/install.log" 2>&1 || true
export AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=/nonexistent AWS_SHARED_CREDENTIALS_FILE=/nonexistent
unset AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_REGION AWS_DEFAULT_REGION AWS_PROFILE AWS_SESSION_TOKEN AWS_CA_BUNDLE
export AWS_ACCESS_KEY_ID=testaccess AWS_SECRET_ACCESS_KEY=testsecretkey no_proxy='*'
ceph=$root/tests/lib/ceph.sh
suite=${LAKE_TEST_OBJECT:-$root/build/tests/unit/test_object}
helpers=()

s3_cleanup() {
	local pid
	for pid in "${helpers[@]:-}"; do
		[ -z "$pid" ] || kill "$pid" 2>/dev/null
	done
	[ ! -d "$scratch/ceph" ] || "$ceph" stop "$scratch/ceph"
	tap_cleanup
}
trap s3_cleanup EXIT

# Below those that the kernel gives to outgoing connections: one of them would be taken meanwhile.
free_port() {
	python3 - <<'P'
import random, socket
while True:
    try:
        with socket.socket() as s:
            s.bind(("127.0.0.1", random.randrange(10000, 20000)))
            print(s.getsockname()[1])
        break
    except OSError:
        pass
P
}

wait_for() { # URL LOG: of the program that is to answer
	local tries=600
	until curl -sk --noproxy '*' -o /dev/null "$1"; do
		tries=$((tries - 1))
		if [ $tries = 0 ]; then
			echo "nothing answers at $1" && sed 's/^/# /' "$2"
			return 1
		fi
		sleep 0.1
	done
}

# -- the suite of tests/unit/test_object.c, here under its own names --
run_suite() { # URL
	[ -n "${LAKE_TEST_OBJECT:-}" ] || make -s -C "$root" build/tests/unit/test_object >"$scratch/make.log" 2>&1
	LAKE_TEST_S3_URL=$1 CMOCKA_MESSAGE_OUTPUT=TAP "$suite" >"$scratch/suite" 2>&1
	grep -E '^(not )?ok ' "$scratch/suite" | while IFS= read -r line; do
		echo "${line#*- }" "${line%%ok*}"
	done >"$scratch/names"
	[ -s "$scratch/names" ] || echo "suite not" >"$scratch/names"
	while read -r name bad; do
		check "contract on radosgw: $name" test -z "$bad"
	done <"$scratch/names"
	grep -E '^#|^not ok' "$scratch/suite" | head -20
}

one_lake_two_hosts() { # URL
	local here=$scratch/here there=$scratch/there
	check "init" lakectl --lake "$here" init --store "$1" "$here"
	check "the configuration holds no secret" sh -c "! grep -q testsecretkey '$here/lake.json'"
	check "mount" lake_mount "$here" "$scratch/m1"
	mkdir "$scratch/m1/main/table"
	for i in $(seq 30); do head -c 20000 /dev/urandom >"$scratch/m1/main/table/$i"; done
	check "commit" lakectl --lake "$here" commit main -m one
	check "clone" lakectl clone "$1" "$there"
	check "mount of the clone" lake_mount "$there" "$scratch/m2"
	check "the clone reads the same" diff -r "$scratch/m1/main" "$scratch/m2/main"
	echo back >"$scratch/m2/main/table/new"
	check "commit on the clone" lakectl --lake "$there" commit main -m two
	check "fsck finds every byte good" lakectl --lake "$there" fsck
	check_exit 1 "a second init is refused" lakectl init --store "$1" "$scratch/again"
	check "and says how to join" contains "lakectl clone" "$scratch/out"
	lake_umount "$there"
}

refusals() { # ENDPOINT
	check_exit 1 "a missing bucket" lakectl clone "s3://nowhere/x?endpoint=$1" "$scratch/no"
	check "is named as such" contains "no such bucket" "$scratch/out"
	check_exit 5 "a place without a lake" lakectl clone "s3://lake/none?endpoint=$1" "$scratch/no"
	check_exit 1 "a wrong secret key" env AWS_SECRET_ACCESS_KEY=hush lakectl clone "s3://lake/x?endpoint=$1" "$scratch/no"
	check "is named as such" contains "secret key is wrong" "$scratch/out"
	check "and not told" sh -c "! grep -q hush '$scratch/out'"
	check_exit 1 "an unknown access key" env AWS_ACCESS_KEY_ID=who lakectl clone "s3://lake/x?endpoint=$1" "$scratch/no"
	check "is named as such" contains "does not know this access key" "$scratch/out"
	check_exit 1 "no keys" env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY lakectl clone "s3://lake/x?endpoint=$1" "$scratch/no"
	check "is named as such" contains "AWS_ACCESS_KEY_ID" "$scratch/out"
	check_exit 1 "nobody there" lakectl clone "s3://lake/x?endpoint=http://127.0.0.1:9&timeout=1" "$scratch/no"
	check "is named as such" contains "cannot be reached" "$scratch/out"
	check_exit 1 "nobody there: nobody waits for a minute" timeout 20 lakectl init --store s3://lake/x --endpoint-url http://127.0.0.1:9 "$scratch/no"
	check "is named as such" contains "cannot be reached" "$scratch/out"
	# radosgw takes any region; what those say that do not is in tests/unit/test_s3_store.c.
	check "radosgw takes any region" lakectl clone "s3://lake/team?endpoint=$1&region=eu-nowhere-9" "$scratch/anywhere"
}

wrong_clock() { # ENDPOINT
	if ! faketime -m -f +1h lakectl --help >/dev/null 2>&1; then
		skip "a wrong clock" "faketime does not work here"
		return
	fi
	check_exit 1 "a clock that is ahead" faketime -m -f +1h lakectl clone "s3://lake/team?endpoint=$1" "$scratch/no"
	check "is named, with how far and what to do" grep -qE "clock is wrong \(it is (3599|36[0-9][0-9]) s ahead\); set it" "$scratch/out"
	check_exit 1 "a clock that is behind" faketime -m -f -1h lakectl init --store "s3://lake/new?endpoint=$1" "$scratch/no"
	check "is named, with how far and what to do" grep -qE "clock is wrong \(it is (3[0-9]{3}) s behind\); set it" "$scratch/out"
}

allow_guest() { # ENDPOINT ACTION...: on the bucket, and nothing else
	local endpoint=$1 actions
	shift
	actions=$(printf '"s3:%s",' "$@")
	cat >"$scratch/policy" <<J
{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/guest"]},
 "Action": [${actions%,}], "Resource": ["arn:aws:s3:::lake", "arn:aws:s3:::lake/*"]}]}
J
	curl -sf --noproxy '*' --aws-sigv4 aws:amz:us-east-1:s3 -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
		--user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -X PUT --data-binary "@$scratch/policy" "$endpoint/lake?policy="
}

# Another user of the gateway, who gets more and then less than it takes.
permissions() { # ENDPOINT
	local url="s3://lake/team?endpoint=$1" guest=$scratch/guest
	as_guest() { AWS_ACCESS_KEY_ID=guestaccess AWS_SECRET_ACCESS_KEY=guestsecretkey "$@"; }
	"$ceph" user "$scratch/ceph" guest
	check_exit 1 "no permission at all" as_guest lakectl clone "$url" "$scratch/no"
	check "is named, with what it takes" contains "the key needs s3:GetObject, s3:PutObject" "$scratch/out"
	allow_guest "$1" GetObject ListBucket
	check_exit 4 "permission to read only" as_guest lakectl clone "$url" "$scratch/no"
	check "is named, with what it takes" contains "the key needs s3:GetObject, s3:PutObject" "$scratch/out"
	allow_guest "$1" GetObject ListBucket PutObject DeleteObject AbortMultipartUpload
	check "all of that is enough" as_guest lakectl clone "$url" "$guest"
	check "to mount" as_guest lake_mount "$guest" "$scratch/m3"
	echo mine >"$scratch/m3/main/table/mine"
	allow_guest "$1" GetObject ListBucket
	check_exit 1 "taken away: a commit fails" lakectl --lake "$guest" commit main -m mine
	check "says why" contains "the key needs s3:GetObject, s3:PutObject" "$scratch/out"
	check "and that nothing is lost" contains "your changes are kept" "$scratch/out"
	check "cold data is read all the same" cmp "$scratch/m3/main/table/1" "$scratch/m1/main/table/1"
	allow_guest "$1" GetObject ListBucket PutObject DeleteObject AbortMultipartUpload
	check "given back: it works" lakectl --lake "$guest" commit main -m mine
	lake_umount "$guest"
	check "no secret in any log" sh -c "! grep -rqE 'guestsecretkey|testsecretkey' '$scratch'/*/laked.log '$scratch'/*/lake.json"
}

make_bucket() { # ENDPOINT; these engines check no signature
	curl -s --noproxy '*' -o /dev/null -X PUT "$1/lake" -H 'Authorization: AWS4-HMAC-SHA256 Credential=S3RVER/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0' \
		-H 'x-amz-date: 20260101T000000Z' -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD'
}

refused_engine() { # NAME ENDPOINT WHAT
	check_exit 1 "$1 is refused" lakectl init --store "s3://lake/x?endpoint=$2&timeout=10" "$scratch/refused-$1"
	check "$1: the message names what it lacks" contains "$3" "$scratch/out"
}

engines_without_compare_and_swap() {
	local port
	if "$root/build/venv/bin/python" -c 'import moto.server' 2>/dev/null; then
		port=$(free_port)
		"$root/build/venv/bin/python" -m moto.server -H 127.0.0.1 -p "$port" >"$scratch/moto.log" 2>&1 &
		helpers+=($!)
		wait_for "http://127.0.0.1:$port/" "$scratch/moto.log"
		make_bucket "http://127.0.0.1:$port"
		refused_engine moto "http://127.0.0.1:$port" "PUT with If-Match and an ETag that is not the object's replaced it"
	else
		skip "moto is refused" "moto cannot be installed"
	fi
	if [ -d "$root/build/node/node_modules/s3rver" ]; then
		port=$(free_port)
		mkdir "$scratch/s3rver"
		node "$root/build/node/node_modules/s3rver/bin/s3rver.js" -d "$scratch/s3rver" -a 127.0.0.1 -p "$port" \
			--configure-bucket lake >"$scratch/s3rver.log" 2>&1 &
		helpers+=($!)
		wait_for "http://127.0.0.1:$port/" "$scratch/s3rver.log"
		AWS_ACCESS_KEY_ID=S3RVER AWS_SECRET_ACCESS_KEY=S3RVER \
			refused_engine s3rver "http://127.0.0.1:$port" "PUT with If-None-Match: * replaced an existing object"
	else
		skip "s3rver is refused" "s3rver cannot be installed"
	fi
}

certificates() {
	local port
	port=$(free_port)
	openssl req -x509 -newkey rsa:2048 -nodes -keyout "$scratch/key.pem" -out "$scratch/ca.pem" -days 2 \
		-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 >/dev/null 2>&1
	python3 - "$port" "$scratch/ca.pem" "$scratch/key.pem" >"$scratch/tls.log" 2>&1 <<'P' &
import http.server, ssl, sys
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
P
	helpers+=($!)
	wait_for "https://127.0.0.1:$port/" "$scratch/tls.log"
	check_exit 1 "an unknown certificate" lakectl clone "s3://lake/x?endpoint=https://127.0.0.1:$port&timeout=2" "$scratch/no"
	check "is not trusted" contains "is not trusted" "$scratch/out"
	check_exit 1 "with its authority's file" lakectl clone "s3://lake/x?endpoint=https://127.0.0.1:$port&timeout=2&ca-file=$scratch/ca.pem" "$scratch/no"
	check "it is, and the web server behind it is told from S3" contains "not as S3 does" "$scratch/out"
}

if "$ceph" start "$scratch/ceph" >"$scratch/ceph.log" 2>&1; then
	# shellcheck disable=SC1091
	. "$scratch/ceph/env"
	"$ceph" bucket "$scratch/ceph" lake
	run_suite "s3://lake/suite?endpoint=$LAKE_TEST_ENDPOINT"
	one_lake_two_hosts "s3://lake/team?endpoint=$LAKE_TEST_ENDPOINT"
	refusals "$LAKE_TEST_ENDPOINT"
	wrong_clock "$LAKE_TEST_ENDPOINT"
	permissions "$LAKE_TEST_ENDPOINT"
	lake_umount "$scratch/here"
	"$ceph" stop "$scratch/ceph"
else
	sed 's/^/# /' "$scratch/ceph.log"
	skip "contract on radosgw" "Ceph does not start here"
fi
engines_without_compare_and_swap
certificates
tap_done
