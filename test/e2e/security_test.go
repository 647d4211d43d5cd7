package e2e

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/test/harness"
)

func securityCases() []testCase {
	return []testCase{
		{name: "seccomp, capabilities, users", tell: tellSecurity},
		{name: "privileged", tell: tellPrivileged},
		{name: "sysctls, allowed and refused", tell: tellSysctls},
		{name: "user namespace", tell: tellUserns},
		{name: "host network, PID and IPC", tell: tellHost},
		{name: "runtime class with another handler", tell: tellHandler},
	}
}

// secondHandler configures a handler of another name beside the default.
func secondHandler(p harness.Programs) string {
	return "[runtime.handlers.runc]\npath = \"" + p.Runc + "\"\n[runtime.handlers.second]\npath = \"" + p.Runc + "\"\n"
}

func tellSecurity(_ *testing.T, k *kube) {
	k.pod("p", `image: IMAGE/busybox
command: [sleep, '1000']
securityContext: {runAsUser: 1000, runAsGroup: 2000, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true,
  capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}, seccompProfile: {type: RuntimeDefault}}`, "securityContext: {supplementalGroups: [3000], supplementalGroupsPolicy: Strict}")
	k.ready("p")
	k.says("p", `id -u; id -G; grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/1/status | tr -s '\t' ' '; touch /x 2>/dev/null || echo refused`,
		"1000\n2000 3000\nCapBnd: 0000000000000400\nNoNewPrivs: 1\nSeccomp: 2\nrefused")
	k.becomes("pod/p", "{.status.containerStatuses[0].user.linux.uid}", "1000")
}

func tellPrivileged(_ *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [sleep, '1000']\nsecurityContext: {privileged: true}", "")
	k.ready("p")
	k.says("p", `mkdir /m && mount -t tmpfs t /m && grep -c ' /m ' /proc/mounts; grep ^Seccomp: /proc/1/status | tr -d '\t'; test -e /dev/kmsg && echo devices`, "1\nSeccomp:0\ndevices")
}

func tellSysctls(_ *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "securityContext: {sysctls: [{name: net.core.somaxconn, value: '321'}, {name: kernel.shm_rmid_forced, value: '1'}]}")
	k.ready("p")
	k.says("p", "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced", "321\n1")
	k.pod("bad", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "securityContext: {sysctls: [{name: kernel.msgmax, value: '65536'}]}")
	k.becomes("pod/bad", "{.status.reason}", "SysctlForbidden")
}

func tellUserns(_ *testing.T, k *kube) {
	k.run("create", "configmap", "conf", "--from-literal=key=one")
	k.pod("p", `image: IMAGE/busybox
command: [sleep, '1000']
volumeMounts: [{name: conf, mountPath: /conf}, {name: dir, mountPath: /dir}]`, "hostUsers: false\nvolumes: [{name: conf, configMap: {name: conf}}, {name: dir, emptyDir: {}}]")
	k.ready("p")
	k.says("p", "id -u; stat -c %u:%g /bin/sh /dir /conf/..data/key; cat /conf/key; touch /dir/f && stat -c %u /dir/f", "0\n0:0\n0:0\n0:0\none0")
	if k.sh("p", "awk '{print $2}' /proc/self/uid_map") == "0" {
		k.t.Fatal("root in the pod is root on the node")
	}
}

func tellHost(_ *testing.T, k *kube) {
	k.pod("net", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "hostNetwork: true\nhostPID: true\nhostIPC: true")
	k.ready("net")
	if got := k.get("pod/net", "{.status.podIP}"); got != controlAddr {
		k.t.Fatalf("the address of a pod on the host's network is %s", got)
	}
	if out := k.sh("net", "ip -o addr; ps"); !strings.Contains(out, "lan0") || !strings.Contains(out, "kube-apiserver") {
		k.t.Fatalf("the pod does not see the node: %s", out)
	}
}

func tellHandler(_ *testing.T, k *kube) {
	k.apply("{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: second}, handler: second}")
	k.apply("{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: nowhere}, handler: nowhere}")
	k.pod("p", "image: IMAGE/probe\nargs: [sleep]", "runtimeClassName: second")
	k.pod("lost", "image: IMAGE/probe\nargs: [sleep]", "runtimeClassName: nowhere")
	k.ready("p")
	k.becomes("pod/lost", "{.status.conditions[?(@.type=='PodReadyToStartContainers')].status}", "False")
	k.run("delete", "runtimeclass", "second", "nowhere")
}
