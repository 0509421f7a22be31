# What every host of a slice runs at every boot, as root. The lines above this one, written by
# launch/tpu_vm.py, say NAME, IMAGE, WORKDIR, DATA, GRACE, RESTARTS, COMMAND and
# ENVIRONMENT.
#
# Starts the run again as often as RESTARTS says, whatever code it ended with: the hosts of a run end
# together, with 75 (start me again) where another one failed. A host that is rebooted or replaced
# begins here anew. The last exit code goes to WORKDIR/launch/NAME/HOST, where `launch.submit` waits
# for it.
set -euo pipefail
export PATH="$PATH:/snap/bin"
say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*"; }

report() {
  local host
  host=$(hostname)
  until printf '%s %s\n' "$host" "$1" | gcloud storage cp - "$WORKDIR/launch/$NAME/$host"; do
    say "cannot write to $WORKDIR, trying again"
    sleep 30
  done
}

pull() {
  gcloud auth print-access-token |
    docker login --username oauth2accesstoken --password-stdin "https://${IMAGE%%/*}" &&
    docker pull "$IMAGE"
}

# The folder DATA at /mnt/data, read-only. Nothing in it changes during a run, so what is known of
# its files is kept for good: without that, every batch asks the bucket for them.
mount_data() {
  local path=${DATA#gs://}
  mountpoint --quiet /mnt/data && return
  if ! command -v gcsfuse; then
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg >/usr/share/keyrings/gcsfuse.asc
    printf 'deb [signed-by=%s] https://packages.cloud.google.com/apt gcsfuse-%s main\n' \
      /usr/share/keyrings/gcsfuse.asc "$(lsb_release -cs)" >/etc/apt/sources.list.d/gcsfuse.list
    apt-get update && apt-get install --yes gcsfuse
  fi
  mkdir -p /mnt/data
  gcsfuse --only-dir "${path#*/}" --implicit-dirs --metadata-cache-ttl-secs -1 \
    --stat-cache-max-size-mb -1 --type-cache-max-size-mb -1 -o ro -o allow_other \
    "${path%%/*}" /mnt/data
}

again() { # command: five times, half a minute apart
  local try
  for try in 1 2 3 4 5; do
    "$@" && return
    say "$1 failed ($try of 5)"
    sleep 30
  done
  return 1
}

variables=()
for variable in "${ENVIRONMENT[@]}"; do variables+=(--env "$variable"); done

again pull || { report 1; exit 1; }
volumes=()
if [[ -n $DATA ]]; then
  again mount_data || { report 1; exit 1; }
  volumes=(--volume /mnt/data:/data:ro)
fi

restarts=0
while true; do
  docker rm --force "$NAME" >/dev/null 2>&1 || true
  code=0
  docker run --name "$NAME" --network host --privileged --user 0 --shm-size 16g \
    --stop-timeout "$GRACE" --log-driver gcplogs "${volumes[@]}" "${variables[@]}" \
    "$IMAGE" "${COMMAND[@]}" || code=$?
  say "exit code $code"
  # A host that shuts down comes back, or another one does, and begins at the top.
  [[ $(systemctl is-system-running || true) == stopping ]] && exit 0
  ((code == 0)) && break
  ((restarts >= RESTARTS)) && break
  restarts=$((restarts + 1))
  sleep 10
done
report "$code"
