package crash

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The model of the CRI's state machine. The life of an object with a given ID
// only goes forward, through these levels; a sandbox has no life as created, one
// that is not ready counts as ended:
//
//	created -> live -> ended -> gone
//
// Calls overlap, so nobody knows an object's level, but bounds are known. What
// was answered before a call was made has happened: the lower bound when it is
// made. What nobody has asked for before the answer came has not: the upper
// bound when it is answered. An answer that fits to no level between is wrong.
type level int

const (
	created level = iota + 1
	live
	ended
	gone
)

// object is a sandbox or a container, as far as its clients know it.
type object struct {
	id, name string
	pod      *object // of a container
	low      level   // answered
	high     level   // asked for
	asked    int     // starts that were asked for
	started  int     // those that succeeded
}

// model is the knowledge of all clients together.
type model struct {
	mu      sync.Mutex
	objects map[string]*object
	past    map[string]bool // objects that were gone and are forgotten
	wrong   []string
	answers map[string]int // by call and code
}

func newModel() *model {
	return &model{objects: map[string]*object{}, past: map[string]bool{}, answers: map[string]int{}}
}

// of a container is at least what its pod's verbs have done to it. With mu held.
func (o *object) lowest() level {
	if o.pod != nil && o.pod.low >= ended {
		return max(o.low, o.pod.low)
	}
	return o.low
}

func (o *object) highest() level {
	if o.pod != nil && o.pod.high >= ended {
		return max(o.high, o.pod.high)
	}
	return o.high
}

// call is one call on an object, from before it is made until it is answered.
type call struct {
	m    *model
	what string
	o    *object
	low  level // when it was made
}

// begin notes that a call is about to be made that may bring o as far as to.
func (m *model) begin(what string, o *object, to level) *call {
	m.mu.Lock()
	defer m.mu.Unlock()
	o.high = max(o.high, to)
	return &call{m, what, o, o.lowest()}
}

// right are the levels at which answers, by their codes, are right.
type right map[codes.Code][]level

// answered checks the answer. If it is no error, the object is at level to at least.
func (c *call) answered(err error, to level, at right) bool {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	code := status.Code(err)
	c.m.answers[c.what+" "+code.String()]++
	if err == nil {
		c.o.low = max(c.o.low, to)
	}
	high := c.o.highest()
	levels, known := at[code]
	if !known && high >= ended && !slices.Contains(at[codes.OK], gone) {
		return false // it ended under the call, which may say so in many ways
	}
	if !slices.ContainsFunc(levels, func(l level) bool { return c.low <= l && l <= high }) {
		c.m.fail("%s %s, which was between %d and %d: %v", c.what, c.o.name, c.low, high, err)
	}
	return err == nil
}

// fail notes a wrong answer. With mu held.
func (m *model) fail(format string, args ...any) {
	if m.wrong = append(m.wrong, fmt.Sprintf(format, args...)); len(m.wrong) > 20 {
		m.wrong = m.wrong[:20]
	}
}

// always is right for calls that nothing can be in the way of.
func always() right { return right{codes.OK: {created, live, ended, gone}} }

// asking is right for calls that tell how an object is.
func asking() right { return right{codes.OK: {created, live, ended}, codes.NotFound: {gone}} }

// only is right for calls that need one of some levels.
func only(levels ...level) right {
	out := right{codes.OK: levels, codes.NotFound: {gone}}
	for l := created; l <= gone; l++ {
		if !slices.Contains(levels, l) {
			out[codes.FailedPrecondition] = append(out[codes.FailedPrecondition], l)
		}
	}
	return out
}

// saw checks a state that was reported for an object. low is its bound when the
// question was asked.
func (m *model) saw(what string, o *object, low, is level) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if is < low || is > o.highest() {
		m.fail("%s: %s is at %d, was between %d and %d", what, o.name, is, low, o.highest())
	}
	o.low = max(o.low, is)
}

// found notes the object that a creation answered with. An ID that is known is
// an answer to an equal call, and right while nothing has been done with it. One
// that came to be, went and was forgotten before this answer arrived stays so.
func (m *model) found(id, name string, pod *object, lows map[string]level) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.objects[id]; o != nil {
		if o.name != name || lows[id] > live || o.pod != nil && lows[id] > created {
			m.fail("create %s: answered with %s, which was at %d", name, o.name, lows[id])
		}
		return
	}
	if m.past[id] {
		return
	}
	o := &object{id: id, name: name, pod: pod, low: created, high: created}
	if pod == nil {
		o.low, o.high = live, live
	}
	m.objects[id] = o
}

// lows are the lower bounds of all objects, before a call that is about many.
func (m *model) lows() map[string]level {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]level{}
	for id, o := range m.objects {
		out[id] = o.lowest()
	}
	return out
}

// refusedNew checks a creation that failed: with AlreadyExists another of the
// name must have been there, past what an equal call is answered with.
func (m *model) refusedNew(what, name string, pod *object, lows map[string]level, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	code := status.Code(err)
	m.answers[what+" "+code.String()]++
	past := live
	if pod == nil {
		past = ended
	}
	switch code {
	case codes.AlreadyExists:
		for id, o := range m.objects {
			if o.name == name && o.highest() >= past && lows[id] < gone {
				return
			}
		}
		for id, low := range lows {
			if low < gone && m.objects[id] == nil {
				return // one that is gone, and forgotten, since
			}
		}
	case codes.FailedPrecondition, codes.Aborted:
		if pod != nil && pod.high >= ended {
			return
		}
	case codes.NotFound:
		if pod != nil && pod.high >= gone {
			return
		}
	}
	if pod != nil && pod.high >= ended && code != codes.AlreadyExists {
		return // its sandbox is being taken away under it
	}
	m.fail("%s %s: %v", what, name, err)
}

// pick returns a known object, nil when there is none yet. Objects that are
// gone are picked, too, but the model forgets most of them.
func (m *model) pick(containers bool, choose func(n int) int) *object {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*object
	for _, o := range m.objects {
		if (o.pod != nil) == containers {
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b *object) int {
		switch {
		case a.id < b.id:
			return -1
		case a.id > b.id:
			return 1
		}
		return 0
	})
	return all[choose(len(all))]
}

// forget drops objects that have been gone for long, but a few.
func (m *model) forget(keep int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, o := range m.objects {
		if o.lowest() == gone {
			if keep--; keep < 0 {
				delete(m.objects, id)
				m.past[id] = true
			}
		}
	}
}

// containerLevel is the level that a state stands for.
func containerLevel(s runtimeapi.ContainerState) level {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return created
	case running:
		return live
	}
	return ended
}

func podLevel(s runtimeapi.PodSandboxState) level {
	if s == ready {
		return live
	}
	return ended
}

// lists asks for all objects: those that are known and asked to go nowhere must
// be among them, at a level they can be at, and no name is there twice.
func (m *model) lists(ctx context.Context, rt runtimeapi.RuntimeServiceClient) error {
	lows := m.lows()
	got, names := map[string]level{}, map[string]int{}
	pods, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.GetItems() {
		got[p.GetId()] = podLevel(p.GetState())
		names[p.GetMetadata().GetName()]++
	}
	cs, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	for _, c := range cs.GetContainers() {
		got[c.GetId()] = containerLevel(c.GetState())
		names[c.GetPodSandboxId()+"/"+c.GetMetadata().GetName()]++
	}
	for id, low := range lows {
		m.mu.Lock()
		o := m.objects[id]
		m.mu.Unlock()
		if o == nil {
			continue
		}
		is, there := got[id]
		if !there {
			is = gone
		}
		m.saw("list", o, low, is)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers["list OK"]++
	for name, n := range names {
		if n > 1 {
			m.fail("list: %d objects have the name %s", n, name)
		}
	}
	return nil
}
