package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func workloadCases() []testCase {
	return []testCase{
		{name: "static pod", tell: tellStatic},
		{name: "deployment, service, rollout", tell: tellDeployment},
		{name: "job that succeeds, job that fails", tell: tellJob},
		{name: "init containers and a sidecar", tell: tellSidecar},
		{name: "probes of all kinds", tell: tellProbes},
		{name: "preStop, graceful and forced termination", tell: tellTermination},
		{name: "termination message and exit codes", tell: tellMessage},
		{name: "a hundred pods", slow: true, tell: tellHundred},
	}
}

func tellStatic(t *testing.T, k *kube) {
	path := k.n.berth.Dir("manifests", "static.yaml")
	text := strings.Replace(podText("static", "image: "+image("probe")+"\nargs: [sleep]", ""), "metadata: {", "metadata: {namespace: "+k.ns+", ", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k.ready("static-node-1")
	// The kubelet shows a version only if it is a semantic one.
	if v := k.get("node/node-1", "{.status.nodeInfo.containerRuntimeVersion}"); !strings.HasPrefix(v, "berth://") || v == "berth://Unknown" {
		t.Errorf("the node's runtime is %s", v)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	k.eventually(time.Minute, func(ctx context.Context) error {
		out, err := k.try(ctx, "get", "pods", "-o", "name")
		if err == nil && out != "" {
			err = errors.New("still there: " + out)
		}
		return err
	})
}

func tellDeployment(_ *testing.T, k *kube) {
	deployment := func(version string) string {
		return `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 3, selector: {matchLabels: {app: web}},
template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 2, containers: [{name: c, image: "IMAGE/probe", env: [{name: VERSION, value: ` + version + `}],
  ports: [{containerPort: 80}], readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1}}]}}}}`
	}
	k.apply(deployment("one"))
	k.apply(`{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 8080, targetPort: 80}]}}`)
	k.run("rollout", "status", "deployment/web", "--timeout=55s")
	ip := k.get("service/web", "{.spec.clusterIP}")
	k.serves(ip+":8080/env", "VERSION=one")
	k.serves(controlAddr+":"+k.get("service/web", "{.spec.ports[0].nodePort}")+"/env", "VERSION=one")
	k.pod("client", "image: IMAGE/probe\nargs: [sleep]", "")
	k.ready("client")
	if got := k.sh("client", "wget -q -O - http://"+ip+":8080/env | grep VERSION"); got != "VERSION=one" {
		k.t.Fatalf("a pod sees %q through the service", got)
	}
	k.apply(deployment("two"))
	k.run("rollout", "status", "deployment/web", "--timeout=55s")
	k.serves(ip+":8080/env", "VERSION=two")
	k.run("scale", "deployment/web", "--replicas=0")
	k.becomes("deployment/web", "{.status.replicas}", "")
}

func tellJob(_ *testing.T, k *kube) {
	job := func(name, args string) string {
		return fmt.Sprintf(`{apiVersion: batch/v1, kind: Job, metadata: {name: %s}, spec: {completions: 2, parallelism: 2, backoffLimit: 0,
template: {spec: {restartPolicy: Never, containers: [{name: c, image: "IMAGE/probe", args: %s}]}}}}
`, name, args)
	}
	k.apply(job("good", "[lines, '10']"))
	k.apply(job("bad", "[exit, '7']"))
	k.becomes("job/good", "{.status.succeeded}", "2")
	k.becomes("job/bad", "{.status.conditions[?(@.type=='Failed')].status}", "True")
	if logs := k.run("logs", "job/good"); strings.Count(logs, "\n") != 10 {
		k.t.Fatalf("the job printed %q", logs)
	}
}

func tellSidecar(t *testing.T, k *kube) {
	k.pod("p", `image: IMAGE/busybox
command: [sh, -c, "cat /shared/order; test -e /shared/sidecar; sleep 2"]
volumeMounts: [{name: shared, mountPath: /shared}]`, `
restartPolicy: Never
volumes: [{name: shared, emptyDir: {}}]
initContainers:
- {name: first, image: IMAGE/busybox, command: [sh, -c, "echo first >>/shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}
- name: sidecar
  image: IMAGE/busybox
  restartPolicy: Always
  command: [sh, -c, "touch /shared/sidecar; trap 'echo sidecar ends; exit 0' TERM; while :; do sleep 0.1; done"]
  startupProbe: {exec: {command: [test, -e, /shared/sidecar]}, periodSeconds: 1}
  volumeMounts: [{name: shared, mountPath: /shared}]
- {name: last, image: IMAGE/busybox, command: [sh, -c, "echo last >>/shared/order"], volumeMounts: [{name: shared, mountPath: /shared}]}`)
	k.phase("p", "Succeeded")
	if got := k.run("logs", "p", "-c", "c"); got != "first\nlast\n" {
		t.Errorf("the order of init containers: %q", got)
	}
	if got := k.run("logs", "p", "-c", "sidecar"); got != "sidecar ends\n" {
		t.Errorf("the sidecar said %q", got)
	}
}

func tellProbes(t *testing.T, k *kube) {
	k.pod("live", `image: IMAGE/busybox
command: [sh, -c, "touch /tmp/ok; while :; do sleep 0.2; done"]
livenessProbe: {exec: {command: [test, -e, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}`, "")
	k.pod("net", `image: IMAGE/probe
startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 30}
readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1}
livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}`, "")
	k.pod("never", `image: IMAGE/probe
args: [sleep]
readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}`, "")
	k.ready("live", "net")
	k.sh("live", "rm /tmp/ok")
	k.eventually(time.Minute, func(context.Context) error {
		if n := k.containers("live")["c"].RestartCount; n == 0 {
			return errors.New("not restarted")
		}
		return nil
	})
	k.ready("live")
	if got := k.get("pod/never", "{.status.conditions[?(@.type=='Ready')].status}"); got != "False" {
		t.Errorf("a pod whose port is closed has Ready=%s", got)
	}
}

func tellTermination(t *testing.T, k *kube) {
	volume := "volumes: [{name: v, hostPath: {path: " + k.n.berth.Dir("plugins") + "}}]"
	k.pod("polite", `image: IMAGE/busybox
command: [sh, -c, "trap 'echo term >>/v/polite; exit 0' TERM; while :; do sleep 0.1; done"]
lifecycle: {preStop: {exec: {command: [sh, -c, "echo prestop >>/v/polite"]}}}
volumeMounts: [{name: v, mountPath: /v}]`, volume)
	k.pod("deaf", "image: IMAGE/probe\nargs: [deaf]", "")
	k.ready("polite", "deaf")
	k.run("delete", "pod", "polite", "--timeout=50s")
	if b, err := os.ReadFile(k.n.berth.Dir("plugins", "polite")); err != nil || string(b) != "prestop\nterm\n" {
		t.Errorf("a pod that ends said %q, %v", b, err)
	}
	k.run("delete", "pod", "deaf", "--timeout=50s")
}

func tellMessage(t *testing.T, k *kube) {
	k.pod("file", "image: IMAGE/busybox\ncommand: [sh, -c, 'echo -n farewell >/dev/termination-log; exit 3']", "restartPolicy: Never")
	k.pod("log", "image: IMAGE/busybox\ncommand: [sh, -c, 'echo last words; exit 4']\nterminationMessagePolicy: FallbackToLogsOnError", "restartPolicy: Never")
	// Kubernetes reads $$ as one dollar sign.
	k.pod("kill", "image: IMAGE/busybox\ncommand: [sh, -c, 'kill -9 $$$$']", "restartPolicy: Never\nshareProcessNamespace: true")
	for pod, want := range map[string]string{"file": "3 Error farewell", "log": "4 Error last words\n", "kill": "137 Error "} {
		k.phase(pod, "Failed")
		s := k.containers(pod)["c"].State.Terminated
		if got := fmt.Sprint(s.ExitCode, " ", s.Reason, " ", s.Message); got != want {
			t.Errorf("pod %s ended with %q, want %q", pod, got, want)
		}
	}
}

func tellHundred(t *testing.T, k *kube) {
	start := time.Now()
	k.apply(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: many}, spec: {replicas: 100, progressDeadlineSeconds: 900, selector: {matchLabels: {app: many}},
template: {metadata: {labels: {app: many}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "IMAGE/probe", args: [sleep]}]}}}}`)
	k.eventually(10*time.Minute, func(ctx context.Context) error {
		n, err := k.try(ctx, "get", "deployment/many", "-o", "jsonpath={.status.readyReplicas}")
		if err == nil && n != "100" {
			err = fmt.Errorf("%s pods are ready", n)
		}
		return err
	})
	t.Logf("100 pods ready after %s", time.Since(start).Round(time.Second))
	k.run("delete", "deployment/many", "--wait=false")
	k.eventually(5*time.Minute, func(ctx context.Context) error {
		out, err := k.try(ctx, "get", "pods", "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("%d pods are left", strings.Count(out, "\n"))
		}
		return err
	})
}
