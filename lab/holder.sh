#!/bin/sh
# First process of a lab host, started by lab/host.py through unshare(1) in network, mount, UTS and PID namespaces of
# its own. Builds the host's root, says "ready", then waits for the end of its standard input, a pipe whose other end
# only the lab's process holds: whichever way that one ends, this one ends, and the kernel ends the host with it.
#
# Arguments: host name, run directory (shared by all hosts), checkout, image layers (colon separated, topmost first).
set -eu
name=$1 run=$2 checkout=$3 images=$4

echo "$name" > /proc/sys/kernel/hostname
base=$run/$name/root
mount -t tmpfs -o mode=0755 lab "$base"
mkdir "$base/empty" "$base/images" "$base/upper" "$base/work" "$base/new"
# The images lie inside the root, and the kernel refuses layers that contain each other. Merged into a file system of
# their own they no longer do.
mount -t overlay -o "ro,lowerdir=$images:$base/empty" lab "$base/images"
mount -t overlay -o "lowerdir=$base/images:/,upperdir=$base/upper,workdir=$base/work" lab "$base/new"

cd "$base/new"
mount -t proc proc proc
mount -t sysfs sysfs sys
[ ! -d sys/fs/bpf ] || mount -t bpf bpf sys/fs/bpf || true # only the eBPF tests need it
mount -t tmpfs -o mode=0755,nosuid lab dev
mkdir dev/pts dev/shm
for node in null zero full random urandom tty; do
    : > "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 lab dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=0755 lab run
mount -t tmpfs -o mode=1777 lab tmp
mkdir -p "./$run" "./$checkout"
mount --bind "$run" "./$run"
mount --bind "$checkout" "./$checkout" # even where it is a file system of its own
cp "$run/$name/etc/"* etc/

pivot_root . .
umount -l .
echo ready
# With CHLD ignored the kernel buries the processes that are left to this one.
exec env --ignore-signal=CHLD cat > /dev/null
