#!/usr/bin/env bash
# slurm_cluster.sh DIR COMMAND...: run COMMAND beside a Slurm of two nodes, n0 (where it runs) and n1.
#
# Real slurmctld, slurmd and munged, from Debian's packages slurmctld, slurmd, munge, slurm-client and
# iproute2, in namespaces of their own: whatever listens or runs in here is seen by nobody outside, and
# ends with COMMAND. Logs and state are in DIR. Needs root. Ends with the exit code of COMMAND.
set -euo pipefail
dir=$(realpath "$1")
if [ -z "${SLURM_CLUSTER_INSIDE:-}" ]; then
  SLURM_CLUSTER_INSIDE=1 exec unshare --net --uts --ipc --mount --pid --fork --mount-proc \
    --kill-child "$0" "$@"
fi
unset SLURM_CLUSTER_INSIDE
shift
mkdir -p "$dir/munge" "$dir/state"
chmod 755 "$dir" "$dir/munge"

printf '127.0.0.1 localhost\n10.77.0.1 n0\n10.77.0.2 n1\n' >"$dir/hosts"
mount --bind "$dir/hosts" /etc/hosts
hostname n0
ip link set lo up
unshare --net --uts sleep infinity &
n1=$!
until [ "$(readlink /proc/$n1/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add to_n1 type veth peer name to_n0 netns $n1
ip address add 10.77.0.1/24 dev to_n1
ip link set to_n1 up
on_n1() { nsenter --target $n1 --net --uts "$@"; }
on_n1 hostname n1
on_n1 ip link set lo up
on_n1 ip address add 10.77.0.2/24 dev to_n0
on_n1 ip link set to_n0 up

cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=n0
SlurmUser=root
AuthInfo=socket=$dir/munge/socket,cred_expire=5  # a requeued job waits that long
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmdLogFile=$dir/slurmd.%n.log
SlurmdSpoolDir=$dir/spool.%n
StateSaveLocation=$dir/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
EnforcePartLimits=ALL
NodeName=n[0-1] CPUs=2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60
PartitionName=short Nodes=ALL MaxTime=1
PartitionName=long Nodes=ALL MaxTime=UNLIMITED
CONF
export SLURM_CONF=$dir/slurm.conf

head -c 64 /dev/urandom >"$dir/munge/key"
chmod 600 "$dir/munge/key"
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
  --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
slurmctld
slurmd
on_n1 slurmd
until [ "$(sinfo --noheader --partition=debug --states=idle --format=%D 2>/dev/null)" = 2 ]; do
  sleep 0.1
done
code=0
"$@" || code=$?
exit $code
