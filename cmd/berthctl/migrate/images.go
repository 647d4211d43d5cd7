package migrate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cmd/berthctl/migrate/adopt"
	"github.com/berth-dev/berth/cri/admin"
)

// Verdicts on images.
const (
	adopted  = "adopted"  // taken over
	present  = "present"  // Berth had it
	possible = "possible" // nothing is in its way
	left     = "left"     // it has to be pulled
)

// Taken is what became of an image of another runtime's store.
type Taken struct {
	Verdict string   `json:"verdict"`
	Names   []string `json:"names"`
	ID      string   `json:"id,omitempty"`
	// Bytes of layers that were sent, or would be.
	Bytes int64  `json:"bytes"`
	Note  string `json:"note,omitempty"` // why not, or what to do
}

// ImageReport is what becomes of a store.
type ImageReport struct {
	From   string  `json:"from"`
	Root   string  `json:"root"`
	Images []Taken `json:"images"`
}

// open opens the runtime's store.
func (o options) open() (adopt.Store, ImageReport, error) {
	s, err := o.source()
	if err != nil {
		return nil, ImageReport{}, err
	}
	root := o.root
	if root == "" {
		root, err = s.imageRoot(o.file)
	}
	r := ImageReport{From: s.name, Root: root, Images: []Taken{}}
	if err != nil {
		return nil, r, cli.Failed(err, "")
	}
	st, err := adopt.Open(s.name, root)
	switch {
	case errdefs.IsUnavailable(err):
		err = cli.Failed(err, "Stop it (systemctl stop "+s.name+"; its containers go on) and run this again.")
	case errors.Is(err, fs.ErrNotExist):
		err = cli.Failed(err, "--root names the directory of its images, when that is elsewhere.")
	case err != nil:
		err = cli.Failed(err, "")
	}
	return st, r, err
}

// checkImages is `migrate check --images`.
func (o options) checkImages(a *cli.App, w io.Writer) error {
	st, r, err := o.open()
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	images, err := st.Images()
	if err != nil {
		return cli.Failed(err, "")
	}
	for _, i := range images {
		t := Taken{Verdict: possible, Names: i.Names, ID: i.ID.String(), Bytes: i.Bytes(nil), Note: pinNote(i.Pinned)}
		if i.Reason != "" {
			t.Verdict, t.Note, t.Bytes = left, i.Reason, 0
		}
		r.Images = append(r.Images, t)
	}
	return a.Show(w, r, imageTable(a, r))
}

func pinNote(pinned bool) string {
	if pinned {
		return "was pinned: unless it is the pause image, which Berth does without, add its name to image.pinned"
	}
	return ""
}

// importImages is `migrate import --images`.
func (o options) importImages(ctx context.Context, a *cli.App, w io.Writer) error {
	st, r, err := o.open()
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	images, err := st.Images()
	if err != nil {
		return cli.Failed(err, "")
	}
	err = a.ImagesAPI(func(cl admin.ImagesClient) error {
		for _, i := range images {
			t, err := take(ctx, cl, i)
			if fatal(err) {
				return err
			}
			if err != nil {
				t.Verdict, t.Note, t.Bytes = left, status.Convert(err).Message(), 0
			}
			r.Images = append(r.Images, t)
		}
		return nil
	})
	return errors.Join(err, a.Show(w, r, imageTable(a, r)))
}

// fatal says that the next image would fare no better.
func fatal(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.PermissionDenied, codes.Unimplemented:
		return true
	}
	return false
}

// take hands one image to the daemon.
func take(ctx context.Context, cl admin.ImagesClient, i adopt.Image) (Taken, error) {
	t := Taken{Verdict: left, Names: i.Names, ID: i.ID.String(), Note: i.Reason}
	if i.Reason != "" {
		return t, nil
	}
	known, err := cl.DescribeImages(ctx, &admin.DescribeImagesRequest{})
	if err != nil {
		return t, err
	}
	names, taken := free(i, known.GetImages())
	var own *admin.ImageDescription
	for _, k := range known.GetImages() {
		if k.GetId() == t.ID {
			own = k
		}
	}
	if i.Pinned && !own.GetPinned() {
		t.Note = pinNote(true)
	}
	if len(taken) > 0 {
		t.Note = "Berth has another image by the name " + strings.Join(taken, ", ")
	}
	if len(names) == 0 {
		return t, nil
	}
	t.Names, i.Names = names, names
	if has(own, names) {
		t.Verdict = present
		return t, nil
	}
	t.Bytes, err = send(ctx, cl, i)
	t.Verdict = adopted
	return t, err
}

// free divides an image's names into those that it may have, and those by which
// Berth has another one: what was pulled since is newer.
func free(i adopt.Image, known []*admin.ImageDescription) (names, taken []string) {
	for _, n := range i.Names {
		if slices.ContainsFunc(known, func(k *admin.ImageDescription) bool { return k.GetId() != i.ID.String() && called(k, n) }) {
			taken = append(taken, n)
		} else {
			names = append(names, n)
		}
	}
	return names, taken
}

func called(k *admin.ImageDescription, name string) bool {
	return slices.Contains(k.GetRepoTags(), name) || slices.Contains(k.GetRepoDigests(), name)
}

// has says that the image is here, whole and by all the names.
func has(k *admin.ImageDescription, names []string) bool {
	return k != nil && whole(k) && !slices.ContainsFunc(names, func(n string) bool { return !called(k, n) })
}

// whole says that all layers of an image are here.
func whole(d *admin.ImageDescription) bool {
	return !slices.ContainsFunc(d.GetLayers(), func(l *admin.ImageLayer) bool { return l.GetDiffId() == "" && l.GetBlob() == "" })
}

// send gives the daemon an image without the layers that it has, and says how
// many bytes of layers that were.
func send(ctx context.Context, cl admin.ImagesClient, i adopt.Image) (int64, error) {
	layers, err := cl.ListLayers(ctx, &admin.ListLayersRequest{})
	if err != nil {
		return 0, err
	}
	have := map[string]bool{}
	for _, l := range layers.GetLayers() {
		have[l.GetLayer().GetChainId()] = true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the call when the store is found to be damaged half-way
	stream, err := cl.ImportImages(ctx)
	if err != nil {
		return 0, err
	}
	to := &sender{stream: stream}
	out := bufio.NewWriterSize(to, 1<<20)
	err = stream.Send(&admin.ImportImagesRequest{Pulled: true})
	if err == nil {
		if err = i.Write(out, have); err == nil {
			err = out.Flush()
		}
		if err != nil && !to.ended {
			return 0, err
		}
	}
	// When the daemon has ended the call, it says why.
	if _, err := stream.CloseAndRecv(); err != nil {
		return 0, err
	}
	return i.Bytes(have), nil
}

// sender sends what is written as pieces of an archive.
type sender struct {
	stream interface {
		Send(*admin.ImportImagesRequest) error
	}
	ended bool // by the daemon
}

// Write implements io.Writer.
func (s *sender) Write(p []byte) (int, error) {
	const size = 1 << 20
	for at := 0; at < len(p); at += size {
		if err := s.stream.Send(&admin.ImportImagesRequest{Data: p[at:min(at+size, len(p))]}); err != nil {
			s.ended = true
			return at, fmt.Errorf("send archive: %w", err)
		}
	}
	return len(p), nil
}

func imageTable(a *cli.App, r ImageReport) cli.Table {
	t := cli.Table{Header: "VERDICT IMAGE ID SIZE NOTE"}
	for _, i := range r.Images {
		t.Rows = append(t.Rows, []string{i.Verdict, strings.Join(i.Names, " "), a.ID(i.ID), cli.Bytes(uint64(max(0, i.Bytes))), i.Note})
	}
	return t
}
