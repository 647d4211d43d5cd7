package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func volumeCases() []testCase {
	return []testCase{
		{name: "config map, secret, downward API, projected token", tell: tellProjected},
		{name: "emptyDir, in memory too, subPath, fsGroup", tell: tellEmptyDir},
		{name: "hostPath and its propagation", tell: tellHostPath},
		{name: "image volume", tell: tellImageVolume},
	}
}

func tellProjected(_ *testing.T, k *kube) {
	k.run("create", "configmap", "conf", "--from-literal=key=one")
	k.run("create", "secret", "generic", "pass", "--from-literal=word=hidden")
	k.pod("p", `image: IMAGE/busybox
command: [sleep, '1000']
env: [{name: CONF, valueFrom: {configMapKeyRef: {name: conf, key: key}}}, {name: WORD, valueFrom: {secretKeyRef: {name: pass, key: word}}}]
volumeMounts: [{name: all, mountPath: /all}, {name: conf, mountPath: /sub/file, subPath: key}]`, `
volumes:
- {name: conf, configMap: {name: conf}}
- name: all
  projected: {sources: [{configMap: {name: conf}}, {secret: {name: pass}}, {serviceAccountToken: {path: token, audience: berth}},
    {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]}`)
	k.ready("p")
	k.says("p", `echo $CONF $WORD $(cat /all/key /all/word /sub/file) $(cat /all/labels)`, `one hidden onehiddenone app="p"`)
	if token := k.sh("p", "cat /all/token"); strings.Count(token, ".") != 2 {
		k.t.Fatalf("the token is %q", token)
	}
	k.run("patch", "configmap", "conf", "-p", `{"data":{"key":"two"}}`)
	k.eventually(2*time.Minute, func(ctx context.Context) error {
		got, err := k.try(ctx, "exec", "p", "--", "cat", "/all/key")
		if err == nil && got != "two" {
			err = fmt.Errorf("the config map still says %q", got)
		}
		return err
	})
}

func tellEmptyDir(_ *testing.T, k *kube) {
	k.pod("p", `image: IMAGE/busybox
command: [sleep, '1000']
securityContext: {runAsUser: 1234}
volumeMounts: [{name: disk, mountPath: /disk}, {name: mem, mountPath: /mem}, {name: disk, mountPath: /part, subPath: a/b}]`, `
securityContext: {fsGroup: 5678}
volumes: [{name: disk, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]`)
	k.ready("p")
	k.says("p", `grep ' /mem ' /proc/mounts | cut -d' ' -f3; echo x >/part/file; cat /disk/a/b/file; echo y >/disk/f; stat -c %u:%g /disk/f; id -G`, "tmpfs\nx\n1234:5678\n0 5678")
	k.says("p", `head -c 16m /dev/zero 2>/dev/null >/mem/big; stat -c %s /mem/big`, "8388608")
}

func tellHostPath(t *testing.T, k *kube) {
	dir := k.n.berth.Dir("plugins", "host")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	k.pod("p", "image: IMAGE/busybox\ncommand: [sleep, '1000']\nvolumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}, {name: v, mountPath: /ro, readOnly: true}]",
		"volumes: [{name: v, hostPath: {path: "+dir+", type: Directory}}]")
	k.ready("p")
	k.says("p", "echo hello >/v/from-pod; cat /ro/from-pod; echo no >/ro/x 2>/dev/null || echo refused", "hello\nrefused")
	ctx := context.Background()
	if err := run(ctx, k.n.berth.Space(), "mkdir "+dir+"/m; mount -t tmpfs tmpfs "+dir+"/m; echo later >"+dir+"/m/f"); err != nil {
		t.Fatal(err)
	}
	k.says("p", "cat /v/m/f", "later")
	if err := run(ctx, k.n.berth.Space(), "umount "+dir+"/m"); err != nil {
		t.Fatal(err)
	}
}

// tellImageVolume mounts an image that no container runs, whole and in part.
func tellImageVolume(_ *testing.T, k *kube) {
	k.pod("p", `image: IMAGE/busybox
command: [sleep, '1000']
volumeMounts: [{name: v, mountPath: /image}, {name: v, mountPath: /part, subPath: etc}]`,
		"volumes: [{name: v, image: {reference: IMAGE/user, pullPolicy: Always}}]")
	k.ready("p")
	k.says("p", "cmp /image/etc/passwd /part/passwd && echo same; touch /image/x 2>&1 | grep -o 'Read-only.*'", "same\nRead-only file system")
}
