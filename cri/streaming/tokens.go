package streaming

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	tokenLife = time.Minute
	maxTokens = 1000 // handed out and not used yet
)

// tokens are the one-time passwords in URLs. Who has one may do what it was
// given out for, once, within tokenLife.
type tokens struct {
	mu   sync.Mutex
	live map[string]ticket
	now  func() time.Time
}

// ticket is what a token stands for.
type ticket struct {
	request any
	until   time.Time
}

// put returns a new token. ResourceExhausted when too many wait to be used.
func (t *tokens) put(request any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for k, v := range t.live {
		if now.After(v.until) {
			delete(t.live, k)
		}
	}
	if len(t.live) >= maxTokens {
		return "", fmt.Errorf("make a streaming URL: %d wait to be used: %w", maxTokens, errdefs.ErrResourceExhausted)
	}
	token := rand.Text() // 128 bits
	t.live[token] = ticket{request, now.Add(tokenLife)}
	return token, nil
}

// take returns what a token stands for, and forgets it. nil: it stands for nothing.
func (t *tokens) take(token string) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.live[token]
	delete(t.live, token)
	if !ok || t.now().After(k.until) {
		return nil
	}
	return k.request
}
