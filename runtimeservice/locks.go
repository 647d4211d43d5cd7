package runtimeservice

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/runtimeservice/recovery"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

const lockWeight = 1 << 20

// objectLocks say who may work on an object: one call at a time, and none
// before its recovery has been tried.
type objectLocks struct {
	*keyedLocks
	recovery *recovery.Tracker
}

// The kinds of objects, as recovery names them.
const (
	kindSandbox   = "sandbox"
	kindContainer = "container"
)

// sandbox returns a sandbox, by ID or prefix, once its recovery has been tried.
func (c *core) sandbox(ctx context.Context, id string) (store.Sandbox, error) {
	rec, err := c.db.Sandbox(id)
	if err != nil {
		return rec, err
	}
	if err := c.locks.recovery.Wait(ctx, kindSandbox, rec.ID); err != nil {
		return rec, err
	}
	return c.db.Sandbox(rec.ID)
}

// container returns a container, by ID or prefix, once its recovery has been
// tried.
func (c *core) container(ctx context.Context, id string) (store.Container, error) {
	rec, err := c.db.Container(id)
	if err != nil {
		return rec, err
	}
	if err := c.locks.recovery.Wait(ctx, kindContainer, rec.ID); err != nil {
		return rec, err
	}
	return c.db.Container(rec.ID)
}

// keyedLocks are read-write locks by name. Waiting ends with the context, and
// waiters are served in order. There is no lock above them: objects never wait
// for one another.
type keyedLocks struct {
	mu sync.Mutex
	m  map[string]*keyedLock
}

type keyedLock struct {
	sem  *semaphore.Weighted
	refs int
}

func newKeyedLocks() *keyedLocks { return &keyedLocks{m: map[string]*keyedLock{}} }

// lock takes key for one holder alone.
func (k *keyedLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	return k.acquire(ctx, key, lockWeight)
}

// rlock takes key together with other readers.
func (k *keyedLocks) rlock(ctx context.Context, key string) (unlock func(), err error) {
	return k.acquire(ctx, key, 1)
}

func (k *keyedLocks) acquire(ctx context.Context, key string, n int64) (func(), error) {
	k.mu.Lock()
	l := k.m[key]
	if l == nil {
		l = &keyedLock{sem: semaphore.NewWeighted(lockWeight)}
		k.m[key] = l
	}
	l.refs++
	k.mu.Unlock()
	if err := wait(ctx, l.sem, n); err != nil {
		k.drop(key, l)
		return nil, fmt.Errorf("wait for another call on %s: %w", key, err)
	}
	return func() { l.sem.Release(n); k.drop(key, l) }, nil
}

// wait tells the observer when others are in the way.
func wait(ctx context.Context, sem *semaphore.Weighted, n int64) error {
	if ctx.Err() == nil && sem.TryAcquire(n) {
		return nil
	}
	return observe.Do(ctx, observe.Work{Kind: observe.Wait, Name: "for another call"}, func(ctx context.Context) error {
		return sem.Acquire(ctx, n)
	})
}

func (k *keyedLocks) drop(key string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.refs--; l.refs == 0 {
		delete(k.m, key)
	}
}

// joinGroup lets a repeated creation join the one that is under way.
type joinGroup struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	request proto.Message
	id      string
	done    chan struct{}
	result  string
	err     error
}

func newJoinGroup() *joinGroup { return &joinGroup{m: map[string]*flight{}} }

// creation is an attempt to make the object that bears a unique name.
type creation struct {
	name    string
	id      string // the ID the object will get
	request proto.Message
	// existing returns the ID of an equal object that is there already; "" when
	// the name is free, an error when another object holds it. It must be quick.
	existing func() (string, error)
	// run makes the object. It goes on when the client has gone.
	run func() (string, error)
}

// do returns the ID of the object: the one that is there, the one that an
// equal call is making, or a new one made by run in a goroutine of spawn.
func (g *joinGroup) do(ctx context.Context, c creation, spawn func(func())) (string, error) {
	g.mu.Lock()
	f, busy := g.m[c.name]
	if busy && !proto.Equal(f.request, c.request) {
		g.mu.Unlock()
		return "", fmt.Errorf("name %q is being made with another configuration as %s; wait, then remove that one first: %w",
			c.name, f.id, errdefs.ErrAlreadyExists)
	}
	if !busy {
		id, err := c.existing()
		if err != nil || id != "" {
			g.mu.Unlock()
			return id, err
		}
		f = &flight{request: c.request, id: c.id, done: make(chan struct{})}
		g.m[c.name] = f
		spawn(func() { g.fly(c, f) })
	}
	g.mu.Unlock()
	select {
	case <-f.done:
		return f.result, f.err
	case <-ctx.Done():
		return "", fmt.Errorf("make %s: it goes on, repeat the call to join it: %w", f.id, ctx.Err())
	}
}

func (g *joinGroup) fly(c creation, f *flight) {
	f.result, f.err = c.run()
	g.mu.Lock()
	delete(g.m, c.name)
	g.mu.Unlock()
	close(f.done)
}

// endings tells waiters that a container's exit has been committed, and keeps
// exits that arrive before the container's record does.
type endings struct {
	mu       sync.Mutex
	waiters  map[string]chan struct{}
	removing map[string]bool
	creating map[string]*shim.Exit // being made; not nil: has ended already
}

func newEndings() *endings {
	return &endings{waiters: map[string]chan struct{}{}, removing: map[string]bool{}, creating: map[string]*shim.Exit{}}
}

// expect makes keep hold an exit of id until take is called.
func (e *endings) expect(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.creating[id] = nil
}

// keep holds the exit of a container that is being made; false when id is not.
func (e *endings) keep(x shim.Exit) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.creating[x.ID]
	if ok {
		e.creating[x.ID] = &x
	}
	return ok
}

// take ends expect and returns the exit that came meanwhile, if one did.
func (e *endings) take(id string) *shim.Exit {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.creating[id]
	delete(e.creating, id)
	return x
}

// wait returns a channel that is closed at the next announcement for id. Get
// it before looking at the record, so that no end is missed.
func (e *endings) wait(id string) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	ch := e.waiters[id]
	if ch == nil {
		ch = make(chan struct{})
		e.waiters[id] = ch
	}
	return ch
}

// announce wakes all who wait for id.
func (e *endings) announce(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ch := e.waiters[id]; ch != nil {
		close(ch)
		delete(e.waiters, id)
	}
}

// setRemoving marks a record whose deletion has begun: late facts must not
// bring it back.
func (e *endings) setRemoving(id string, on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if on {
		e.removing[id] = true
	} else {
		delete(e.removing, id)
	}
}

func (e *endings) isRemoving(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.removing[id]
}

var (
	errCreateTime = fmt.Errorf("the time for making it is over: %w", context.DeadlineExceeded)
	errPodStopped = fmt.Errorf("its sandbox is being stopped: %w", errdefs.ErrAborted)
)

// creations are the containers being made, by sandbox: a stop of the sandbox
// cancels them instead of waiting for a runtime that hangs.
type creations struct {
	mu sync.Mutex
	m  map[string]map[*context.CancelCauseFunc]bool
}

func newCreations() *creations {
	return &creations{m: map[string]map[*context.CancelCauseFunc]bool{}}
}

// begin returns a context that cancel ends; done must be called.
func (c *creations) begin(ctx context.Context, pod string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[pod] == nil {
		c.m[pod] = map[*context.CancelCauseFunc]bool{}
	}
	c.m[pod][&cancel] = true
	return ctx, func() {
		cancel(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.m[pod], &cancel); len(c.m[pod]) == 0 {
			delete(c.m, pod)
		}
	}
}

// cancel ends the creations under way in a sandbox; they roll back.
func (c *creations) cancel(pod string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for cancel := range c.m[pod] {
		(*cancel)(errPodStopped)
	}
}
