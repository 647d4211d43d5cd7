package main

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	st "github.com/berth-dev/berth/imageservice/signature/signaturetest"
)

// signed puts a signature policy in force by SIGHUP, with berth-verify as it is
// installed: what was signed by the key is pulled, nothing else.
func (in *instance) signed(t *testing.T, bin string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		return // the test's images are
	}
	reg := rt.New(t, false)
	key := st.NewKey(t)
	push := func(tag string) rt.Image {
		return reg.Push(t, "app", tag, ocispec.ImageConfig{}, rt.Pack(t, rt.Tar(t, rt.File{Header: tar.Header{Name: "f"}, Body: tag}), "gzip"))
	}
	good := push("signed")
	push("plain")
	st.AttachLegacy(t, reg, "app", good.Manifest.Digest, key.Legacy(t, st.Payload(good.Manifest.Digest)))
	pull := func(tag string) (string, error) {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "berthctl"), "--admin-address", in.file("run/admin.sock"), "images", "pull", "-q", reg.Host()+"/app:"+tag).CombinedOutput()
		return string(out), err
	}
	if out, err := pull("plain"); err != nil {
		t.Fatalf("without a policy: %v: %s", err, out)
	}
	path := key.File(t)
	conf := fmt.Sprintf("[image.signatures.rules.%q]\nkeys = [%q]\n", reg.Host(), path)
	if err := os.WriteFile(in.file("c.toml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	reload := func() {
		t.Helper()
		_ = in.cmd.Process.Signal(syscall.SIGHUP)
		in.expect(t, "RELOADING=1")
		in.expect(t, "READY=1")
	}
	reload()
	if out, err := pull("signed"); err != nil {
		t.Errorf("a signed image: %v: %s", err, out)
	}
	if out, err := pull("plain"); err == nil || !strings.Contains(out, "SignatureValidationFailed") {
		t.Errorf("an unsigned image: %v: %s", err, out)
	}
	in.reloadsImages(t, bin, reg, conf)
	// A key that cannot be read leaves the old policy in force.
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	reload()
	in.logs(t, "is not one public key in PEM")
	if out, err := pull("plain"); err == nil || !strings.Contains(out, "SignatureValidationFailed") {
		t.Errorf("an unsigned image after a failed reload: %v: %s", err, out)
	}
}

// reloadsImages changes by SIGHUP where registries are and what is pinned; conf
// stays in force beside it.
func (in *instance) reloadsImages(t *testing.T, bin string, reg *rt.Server, conf string) {
	t.Helper()
	dir := filepath.Join(in.file("certs.d"), "named.test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(fmt.Sprintf("server = %q\n", reg.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	image := fmt.Sprintf("[image]\npinned = [\"named.test/*\"]\nregistry_hosts_dirs = [%q]\ngzip = \"builtin\"\nauth_files = [%q]\n", in.file("certs.d"), in.file("auth.json"))
	if err := os.WriteFile(in.file("c.toml"), []byte(image+conf), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = in.cmd.Process.Signal(syscall.SIGHUP)
	in.expect(t, "RELOADING=1")
	in.expect(t, "READY=1")
	in.logs(t, "msg=\"configuration changed\" key=image.registry_hosts_dirs", "msg=\"configuration changed\" key=image.auth_files", "msg=\"configuration changed\" key=image.gzip")
	ctl := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "berthctl"), append([]string{"--admin-address", in.file("run/admin.sock")}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("berthctl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	ctl("images", "pull", "-q", "named.test/app:plain")
	if got := ctl("images", "inspect", "named.test/app:plain"); !strings.Contains(strings.ReplaceAll(got, " ", ""), `"pinned":true`) {
		t.Errorf("a pinned image: %s", got)
	}
}
