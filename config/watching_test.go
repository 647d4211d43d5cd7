package config

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestMetricsAddress: what is refused, and what the refusal says to do.
func TestMetricsAddress(t *testing.T) {
	const form = "is neither an IP address with port, such as 127.0.0.1:9466, nor unix:///PATH"
	const loopback = "is not a loopback address; set metrics.allow_remote if others may read the metrics"
	for _, tt := range []struct {
		address string
		remote  bool
		says    string // "": it is taken
	}{
		{"", false, ""},
		{"127.0.0.1:9466", false, ""},
		{"127.8.8.8:1", false, ""},
		{"[::1]:9466", false, ""},
		{"[::ffff:127.0.0.1]:9466", false, ""},
		{"127.0.0.1:0", false, ""},
		{"unix:///run/berth/metrics.sock", false, ""},
		{"unix://metrics.sock", false, "must be an absolute path behind unix://"},
		{"unix://", true, "must be an absolute path behind unix://"},
		{"unix:/run/m.sock", true, form},
		{"/run/m.sock", true, form},
		{"localhost:9466", false, form},
		{"localhost:9466", true, form},
		{":9466", true, form},
		{"9466", false, form},
		{"127.0.0.1", false, form},
		{"127.0.0.1:", false, form},
		{"127.0.0.1:65536", false, form},
		{"::1:9466", false, form},
		{"http://127.0.0.1:9466", false, form},
		{"127.0.0.1:9466/metrics", false, form},
		{" 127.0.0.1:9466", false, form},
		{"0.0.0.0:9466", false, loopback},
		{"[::]:9466", false, loopback},
		{"192.0.2.7:9466", false, loopback},
		{"[::ffff:192.0.2.7]:9466", false, loopback},
		{"[fe80::1%eth0]:9466", false, loopback},
		{"0.0.0.0:9466", true, ""},
		{"[2001:db8::1]:9466", true, ""},
	} {
		c := Default()
		c.Metrics = Metrics{Address: tt.address, AllowRemote: tt.remote}
		err := c.Validate()
		switch {
		case tt.says == "" && err != nil:
			t.Errorf("%q, remote %v: %v", tt.address, tt.remote, err)
		case tt.says == "":
		case !errdefs.IsInvalidArgument(err), !strings.Contains(err.Error(), "metrics.address"), !strings.Contains(err.Error(), tt.says):
			t.Errorf("%q, remote %v: %v, want %s", tt.address, tt.remote, err, tt.says)
		}
	}
}
