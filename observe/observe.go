// Package observe is the one seam by which work in the daemon is watched. The
// code that works says when a piece of it begins and ends, and knows nothing of
// who listens: metrics, traces and the timelines of pods hear the same words.
//
// The observer travels in the context. A context without one costs a look-up
// and nothing else.
package observe

import "context"

// Kind is what sort of work a Work is.
type Kind string

// The kinds of work.
const (
	Call     Kind = "call"     // an RPC of the CRI
	Verb     Kind = "verb"     // a verb on an object
	Step     Kind = "step"     // a step of a verb
	Undo     Kind = "undo"     // the undoing of a step
	Recovery Kind = "recovery" // an interrupted verb is finished or undone
	Repair   Kind = "repair"   // something that no record knows is taken away
	Wait     Kind = "wait"     // waiting for other work on the same object
	CNI      Kind = "cni"      // a call of a network plugin
	Registry Kind = "registry" // a request to an image registry
	Shim     Kind = "shim"     // a request to a shim, which may run the OCI runtime
	Exec     Kind = "exec"     // a command in a container
)

// Work is one piece of work. Kind, Verb and Name come from small fixed sets and
// may become labels; Object and Pod do not.
type Work struct {
	Kind   Kind
	Verb   string // of a Step or Undo: the verb it belongs to
	Name   string // "RunPodSandbox", "sandbox.run", "network", "ADD bridge"
	Object string // ID of what it works on; "": as the work around it
	Pod    string // ID of the sandbox concerned; "": not known here
}

// End ends a piece of work; err is nil when it went well. It is called once.
type End func(err error)

// Observer hears of work. Begin is called where the work begins and must not
// block; the context it returns is the work's own, in which inner work begins.
type Observer interface {
	Begin(ctx context.Context, w Work) (context.Context, End)
}

type key struct{}

// With returns a context whose work o hears of; nil o is allowed.
func With(ctx context.Context, o Observer) context.Context {
	if o == nil {
		return ctx
	}
	return context.WithValue(ctx, key{}, o)
}

// Begin tells the context's observer that w begins. The work runs in the
// context it returns and ends with the function it returns.
func Begin(ctx context.Context, w Work) (context.Context, End) {
	if o, ok := ctx.Value(key{}).(Observer); ok {
		return o.Begin(ctx, w)
	}
	return ctx, func(error) {}
}

// Do is Begin, f, end.
func Do(ctx context.Context, w Work, f func(context.Context) error) error {
	ctx, end := Begin(ctx, w)
	err := f(ctx)
	end(err)
	return err
}

// Detached returns a context that ends with life and knows what call knows: for
// work that goes on when the client that asked for it has gone.
func Detached(life, call context.Context) context.Context {
	return detached{Context: life, call: call}
}

type detached struct {
	context.Context
	call context.Context
}

func (d detached) Value(k any) any {
	if v := d.Context.Value(k); v != nil {
		return v
	}
	return d.call.Value(k)
}

// Join returns an observer that passes everything on to all of them, in order.
func Join(all ...Observer) Observer { return joined(all) }

type joined []Observer

func (j joined) Begin(ctx context.Context, w Work) (context.Context, End) {
	ends := make([]End, len(j))
	for i, o := range j {
		ctx, ends[i] = o.Begin(ctx, w)
	}
	return ctx, func(err error) {
		for i := len(ends) - 1; i >= 0; i-- {
			ends[i](err)
		}
	}
}
