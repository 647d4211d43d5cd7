// Command berthd is the Berth daemon: it serves the Kubernetes Container
// Runtime Interface on a unix socket.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"k8s.io/klog/v2"

	"github.com/berth-dev/berth/config"
)

// Exit codes.
const (
	exitFailed = 1 // could not start, or ended by an error
	exitUsage  = 2 // command line or configuration is wrong
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fl, err := parseFlags(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return exitUsage // the flag package has said it
	case fl.version:
		_, _ = fmt.Fprintln(stdout, "berthd", config.Version)
		return 0
	}
	cfg, source, err := fl.load()
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "berthd:", err)
		return exitUsage
	}
	if os.Geteuid() != 0 {
		_, _ = fmt.Fprintln(stderr, "berthd: must run as root: it makes namespaces, mounts and cgroups; use sudo or the systemd unit")
		return exitFailed
	}
	level := &slog.LevelVar{}
	log := newLogger(cfg.Log, level, stderr)
	klog.SetSlogLogger(log.With("part", "streaming")) // the streaming library logs there
	if err := serve(fl, settings{cfg: cfg, source: source}, log, level); err != nil {
		log.Error("berthd ends", "error", err)
		return exitFailed
	}
	return 0
}

// newLogger logs to w at the configured level, which level can change later.
func newLogger(c config.Log, level *slog.LevelVar, w io.Writer) *slog.Logger {
	setLevel(level, c.Level)
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// setLevel takes a level that the configuration has validated.
func setLevel(level *slog.LevelVar, name string) {
	var l slog.Level
	if l.UnmarshalText([]byte(name)) == nil {
		level.Set(l)
	}
}
