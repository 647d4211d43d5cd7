package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// serveImage serves the generated image as bench/image:v1 from files. It does
// as little as a registry can: what is measured is the client.
func serveImage(l net.Listener, dir string, img image) *http.Server {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, name, _ := strings.Cut(r.URL.Path, "/v2/bench/image/")
		kind, object, _ := strings.Cut(name, "/")
		if kind == "manifests" {
			if object == "v1" {
				object = img.Manifest.String()
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", object)
		} else {
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		d := digest.Digest(object)
		if d.Validate() != nil {
			fmt.Fprint(w, "{}") // the version check
			return
		}
		f, err := os.Open(filepath.Join(dir, d.Encoded()))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		http.ServeContent(w, r, "", time.Time{}, f)
	})
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go s.Serve(l)
	return s
}
