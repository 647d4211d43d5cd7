package registrytest

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// A script of faults: On picks the requests, Times how many of them, Either
// joins scripts, and the functions below them say what happens.

// On makes a fault of the requests whose path has part in it.
func On(part string, f Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return strings.Contains(r.URL.Path, part) && f(w, r, next)
	}
}

// OnBlob makes a fault of the requests for a blob.
func OnBlob(d digest.Digest, f Fault) Fault { return On("/blobs/"+d.String(), f) }

// Times lets the fault happen n times; then the registry serves as it should.
func Times(n int, f Fault) Fault {
	var done atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return done.Load() < int64(n) && done.Add(1) <= int64(n) && f(w, r, next)
	}
}

// Either tries faults in order until one happens.
func Either(all ...Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		for _, f := range all {
			if f(w, r, next) {
				return true
			}
		}
		return false
	}
}

// Status answers with a code, and Retry-After when it has one.
func Status(code int, retryAfter string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(code)
		return true
	}
}

// Hang accepts and says nothing.
func Hang() Fault {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		<-r.Context().Done()
		return true
	}
}

// RedirectLoop sends the client back to where it is.
func RedirectLoop() Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
}

// Change serves what change makes of the right body, without ranges.
func Change(change func([]byte) []byte) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		rec, body := Body(next, plain)
		if t := rec.Header().Get("Content-Type"); t != "" {
			w.Header().Set("Content-Type", t)
		}
		_, _ = w.Write(change(body))
		return true
	}
}

// FlipLast changes the last byte.
func FlipLast(b []byte) []byte {
	b = append([]byte(nil), b...)
	b[len(b)-1] ^= 1
	return b
}

// Half leaves the second half out, in an answer that is whole.
func Half(b []byte) []byte { return b[:len(b)/2] }

// Cut serves up to n bytes of what was asked for, with ranges, and then cuts
// the connection.
func Cut(n int) Fault { return piecewise(n, 0) }

// Drip serves ranges a byte at a time, with a pause before each.
func Drip(pause time.Duration) Fault { return piecewise(0, pause) }

func piecewise(n int, pause time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		_, body := Body(next, plain)
		from, to := 0, len(body)-1
		if c, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); c > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(body)))
			w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		}
		if pause == 0 {
			_, _ = w.Write(body[from:min(from+n, to+1)])
			// What is not sent yet would go with the connection, and of a kept
			// connection without an answer the client's library tries again by itself.
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		for i := from; i <= to && r.Context().Err() == nil; i++ {
			_, _ = w.Write(body[i : i+1])
			w.(http.Flusher).Flush()
			time.Sleep(pause)
		}
		return true
	}
}

// Endless sends zeros until the client has enough, at most limit bytes, and
// counts them.
func Endless(limit int64, sent *atomic.Int64) Fault {
	zeros := make([]byte, 64<<10)
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		for n := int64(0); n < limit && r.Context().Err() == nil; n += int64(len(zeros)) {
			m, err := w.Write(zeros)
			sent.Add(int64(m))
			if err != nil {
				break
			}
		}
		return true
	}
}
