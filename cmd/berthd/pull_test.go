package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
)

// pulls pulls with berthctl: what works, what does not exist, and a registry
// that nobody serves.
func (in *instance) pulls(t *testing.T, bin string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		return // the test's images are
	}
	reg := rt.New(t, false)
	img := reg.Push(t, "app", "v1", ocispec.ImageConfig{}, rt.Pack(t, rt.Tar(t, rt.File{Header: tar.Header{Name: "f"}, Body: "x"}), "gzip"))
	for _, tt := range []struct {
		image        string
		code         int
		stdout, says string
	}{
		{reg.Host() + "/app:v1", 0, img.ID.String() + "\n", "HOST "},
		{reg.Host() + "/app:none", 4, "", "404"},
		{"127.0.0.1:1/app:v1", 1, "", "127.0.0.1:1"},
		{"::", 1, "", "::"},
	} {
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "berthctl"), "--admin-address", in.file("run/admin.sock"), "images", "pull", "--explain", tt.image)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		code := 0
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		}
		if code != tt.code || stdout.String() != tt.stdout || !strings.Contains(stderr.String(), tt.says) {
			t.Errorf("berthctl images pull %s: %v\n%s\n%s", tt.image, err, &stdout, &stderr)
		}
		t.Logf("%s", &stderr)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "berthctl"), "--admin-address", in.file("run/admin.sock"), "metrics").CombinedOutput()
	if err != nil {
		t.Fatalf("berthctl metrics: %v\n%s", err, out)
	}
	for _, want := range []string{
		"berth_pulls_in_progress 0", `berth_pull_layers_total{source="fetched"} 1`, `berth_pull_layers_total{source="present"} 0`,
		`berth_pull_bytes_total{source="received"} `, `berth_pull_phase_seconds_total{phase="unpack"} `, `berth_pull_transfer_breaks_total 0`,
		`berth_container_log_lost_bytes_total{reason="error"} 0`,
	} {
		if !bytes.Contains(out, []byte("\n"+want)) {
			t.Errorf("berthctl metrics lacks %s\n%s", want, out)
		}
	}
	if bytes.Contains(out, []byte("\nberth_registry_host_failures_total 0\n")) || bytes.Contains(out, []byte(`{source="received"} 0`+"\n")) {
		t.Errorf("what pulls did is not in the metrics:\n%s", out)
	}
}
