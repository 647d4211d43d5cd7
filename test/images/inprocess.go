package images

import (
	"bytes"
	"io"
	"net/http"
)

// inProcess is a RoundTripper that calls a handler directly.
type inProcess struct{ h http.Handler }

func (t inProcess) RoundTrip(q *http.Request) (*http.Response, error) {
	q = q.Clone(q.Context())
	if q.Body == nil {
		q.Body = http.NoBody
	}
	q.RequestURI = q.URL.RequestURI()
	rec := &recorder{header: http.Header{}, code: http.StatusOK}
	t.h.ServeHTTP(rec, q)
	return &http.Response{
		StatusCode: rec.code, Status: http.StatusText(rec.code), Header: rec.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: q,
		Body: io.NopCloser(&rec.body), ContentLength: int64(rec.body.Len()),
	}, nil
}

// recorder keeps a response in memory.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
