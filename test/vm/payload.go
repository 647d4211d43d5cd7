package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed guest
var guest embed.FS

// payload makes the disk with today's programs and tests: programs in bin,
// tests in src/PACKAGE beside their testdata, a file for each group.
func payload(ctx context.Context, module, cache string, gs []group) (string, error) {
	dir := filepath.Join(cache, "payload")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"bin", "tools", "groups", "src", "guest", "deploy"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	if err := errors.Join(programs(ctx, module, dir), debianPackages(ctx, module, dir), testBinaries(ctx, module, dir, packages(gs)), scripts(dir, gs)); err != nil {
		return "", err
	}
	if err := os.CopyFS(filepath.Join(dir, "deploy"), os.DirFS(filepath.Join(module, "deploy"))); err != nil {
		return "", err
	}
	disk := filepath.Join(cache, "payload.ext4")
	if err := os.RemoveAll(disk); err != nil {
		return "", err
	}
	return disk, command(ctx, "", "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", dir, disk, "1500M")
}

// programs builds Berth's programs and what the tests build themselves, and
// takes runc and the plugins from the module's bin.
func programs(ctx context.Context, module, dir string) error {
	bin := filepath.Join(dir, "bin")
	for _, p := range []string{"cmd/berthd", "cmd/berth-shim", "cmd/berthctl", "cmd/berth-verify", "test/images/cmd/probe"} {
		if err := command(ctx, module, "go", "build", "-trimpath", "-tags", "nri_no_wasm", "-ldflags=-s -w", "-o", filepath.Join(bin, filepath.Base(p)), "./"+p); err != nil {
			return err
		}
	}
	if err := command(ctx, module, "cp", "-a", "bin/runc", "bin/cni", bin); err != nil {
		return err
	}
	// The kubelet, where there is one, for its checkpoint endpoint.
	kubelet := filepath.Join(module, "bin/k8s/kubelet")
	if _, err := os.Stat(kubelet); err != nil {
		return nil //nolint:nilerr // the story says what is missing
	}
	return command(ctx, filepath.Join(module, "bin"), "cp", "--parents", "k8s/kubelet", bin)
}

// debianPackages makes the package out of these programs, and one of a later
// version that takes its place.
func debianPackages(ctx context.Context, module, dir string) error {
	bin := "BIN=" + filepath.Join(dir, "bin")
	return errors.Join(command(ctx, module, "env", bin, "deploy/deb/build", dir, "0.0.1"),
		command(ctx, module, "env", bin, "deploy/deb/build", filepath.Join(dir, "later"), "0.0.2"))
}

func testBinaries(ctx context.Context, module, dir string, packages []string) error {
	src := filepath.Join(dir, "src")
	// Tests look for the module and its programs above their directories.
	if err := errors.Join(command(ctx, module, "cp", "go.mod", src), os.Symlink("../bin", filepath.Join(src, "bin"))); err != nil {
		return err
	}
	for _, p := range packages {
		to := filepath.Join(src, p)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := command(ctx, module, "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(to, filepath.Base(p)+".test"), "./"+p); err != nil {
			return err
		}
		data := filepath.Join(module, p, "testdata")
		if _, err := os.Stat(data); err != nil {
			continue
		}
		if err := os.CopyFS(filepath.Join(to, "testdata"), os.DirFS(data)); err != nil {
			return err
		}
	}
	return nil
}

// scripts writes the guest's programs and a file for each group.
func scripts(dir string, gs []group) error {
	for _, g := range gs {
		if err := os.WriteFile(filepath.Join(dir, "groups", g.name), []byte(strings.Join(g.tests, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	return fs.WalkDir(guest, "guest", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := guest.ReadFile(path)
		if err != nil {
			return err
		}
		if d.Name() == "go" {
			path = "tools/go"
		}
		mode := fs.FileMode(0o755)
		if strings.HasSuffix(path, ".service") {
			mode = 0o644
		}
		return os.WriteFile(filepath.Join(dir, path), b, mode)
	})
}

// command runs a program and puts what it said into the error.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if name == "go" {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}
