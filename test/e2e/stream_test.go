package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func streamCases() []testCase {
	return []testCase{
		{name: "exec: output, exit code, stdin, environment", tell: tellExec},
		{name: "attach to stdin", tell: tellAttach},
		{name: "logs, follow, previous, rotation", tell: tellLogs},
		{name: "port-forward", tell: tellPortForward},
		{name: "cp both ways", tell: tellCopy},
		{name: "ephemeral debug container", tell: tellDebug},
	}
}

func tellExec(t *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [sleep, '1000']\nenv: [{name: A, value: b}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]", "")
	k.ready("p")
	k.says("p", "echo $A $NODE; hostname", "b node-1\np")
	if got := k.feed("over stdin", "exec", "-i", "p", "--", "cat"); got != "over stdin" {
		t.Errorf("cat answers %q", got)
	}
	_, err := k.try(t.Context(), "exec", "p", "--", "sh", "-c", "exit 42")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("exec ends with %v, want exit code 42", err)
	}
}

func tellAttach(t *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [cat]\nstdin: true\nstdinOnce: true", "restartPolicy: Never")
	k.ready("p")
	if got := k.feed("to the container\n", "attach", "-q", "-i", "p"); got != "to the container\n" {
		t.Errorf("attach printed %q", got)
	}
	k.phase("p", "Succeeded")
}

func tellLogs(t *testing.T, k *kube) {
	k.pod("once", "image: IMAGE/busybox\ncommand: [sh, -c, 'echo life $RANDOM; sleep 1; exit 1']", "restartPolicy: OnFailure")
	k.pod("talk", "image: IMAGE/busybox\ncommand: [sh, -c, 'i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i of a log that is long enough to be turned over while it grows; done; sleep 1000']", "")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	k.ready("talk")
	cmd := k.kubectlCommand(ctx, "--namespace", k.ns, "logs", "-f", "talk")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := ""
	for s := bufio.NewScanner(out); s.Scan(); {
		last = s.Text()
		if strings.HasPrefix(last, "line 60000 ") {
			break
		}
	}
	cancel()
	_ = cmd.Wait()
	if !strings.HasPrefix(last, "line 60000 ") {
		t.Errorf("follow ended at %q", last)
	}
	k.eventually(time.Minute, func(context.Context) error {
		files, _ := filepath.Glob(k.n.berth.Dir("podlogs", k.ns+"_talk_*", "c", "0.log.*"))
		if len(files) == 0 {
			return errors.New("the log was not rotated")
		}
		return nil
	})
	k.eventually(time.Minute, func(ctx context.Context) error {
		got, err := k.try(ctx, "logs", "--previous", "once")
		if err == nil && !strings.HasPrefix(got, "life ") {
			err = fmt.Errorf("the former life said %q", got)
		}
		return err
	})
}

func tellPortForward(t *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/probe", "")
	k.ready("p")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := k.kubectlCommand(ctx, "--namespace", k.ns, "port-forward", "pod/p", ":80")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	// Forwarding from 127.0.0.1:PORT -> 80
	line, err := bufio.NewReader(out).ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) < 3 {
		t.Fatalf("port-forward said %q, %v", line, err)
	}
	for range 5 {
		k.serves(words[2]+"/hostname", "p")
	}
}

func tellCopy(t *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "")
	k.ready("p")
	data := bytes.Repeat([]byte("0123456789abcdef\x00\xff\n"), 1<<19)
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	if err := os.WriteFile(from, data, 0o600); err != nil {
		t.Fatal(err)
	}
	k.run("cp", from, "p:/tmp/file")
	k.says("p", "sha256sum /tmp/file | cut -d' ' -f1", fmt.Sprintf("%x", sha256.Sum256(data)))
	k.run("cp", "p:/tmp/file", to)
	if back, err := os.ReadFile(to); err != nil || !bytes.Equal(back, data) {
		t.Errorf("the file came back as %d bytes, %v; want %d", len(back), err, len(data))
	}
}

func tellDebug(t *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/probe\nargs: [sleep]", "")
	k.ready("p")
	k.run("debug", "p", "--image="+image("busybox"), "--target=c", "--container=dbg", "--profile=general", "--", "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline; echo; sleep 1000")
	k.eventually(time.Minute, func(context.Context) error {
		if k.containers("p")["dbg"].State.Running == nil {
			return errors.New("the debug container does not run")
		}
		return nil
	})
	k.eventually(time.Minute, func(ctx context.Context) error {
		got, err := k.try(ctx, "logs", "p", "-c", "dbg")
		if err == nil && got != "/probe sleep \n" {
			err = fmt.Errorf("the debug container sees %q as PID 1", got)
		}
		return err
	})
}
