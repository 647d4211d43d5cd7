package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/config"
)

func TestRun(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	tests := []struct {
		name, want string
		args       []string
		code       int
	}{
		{"default file", config.DefaultFile(), []string{"config", "default"}, 0},
		{"check", "../../deploy/config.toml: ok", []string{"config", "check", "../../deploy/config.toml"}, 0},
		{"check missing", "no such file", []string{"config", "check", none}, 1},
		{"diff", "", []string{"config", "diff", "../../deploy/config.toml"}, 0},
		{"reset of what", "--network", []string{"reset"}, 2},
		{"reset with a missing file", "no such file", []string{"reset", "--network", "--config", none}, 1},
		{"no daemon", "Is berthd running", []string{"--address", none, "version"}, 3},
		{"no admin socket", "--admin-address", []string{"--admin-address", none, "ops"}, 3},
		{"bad output", "use table, wide, json or yaml", []string{"-o", "xml", "version"}, 2},
		{"unknown command", "unknown command", []string{"frobnicate"}, 2},
		{"help has exit codes", "the object does not exist", []string{"--help"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if code := run(t.Context(), tt.args, &b, &b); code != tt.code || !strings.Contains(b.String(), tt.want) {
				t.Errorf("code %d\n%s", code, b.String())
			}
		})
	}
}
