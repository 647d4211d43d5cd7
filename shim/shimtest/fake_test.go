package shimtest

import (
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/shim"
)

func TestConformance(t *testing.T) {
	Run(t, func(*testing.T) *Subject {
		f := NewFake()
		f.OnSignal = func(id string, sig syscall.Signal) {
			e := shim.Exit{ID: id, Code: 3, At: time.Now()}
			if sig == syscall.SIGKILL {
				e.Code, e.Signal = 137, 9
			}
			f.End(e)
		}
		return &Subject{Shims: f,
			Request: func(_ *testing.T, id string) shim.CreateRequest { return shim.CreateRequest{ID: id} },
			Again: func(_ *testing.T, kill string) Shims {
				if kill != "" {
					f.Miss(shim.Exit{ID: kill, Code: 137, Signal: 9, At: time.Now()})
				}
				f = f.Again()
				return f
			}}
	})
}
