package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/chunk"
	"github.com/berth-dev/berth/imageservice/snapshot"
	"github.com/berth-dev/berth/store"
)

// Resolve returns the image for an ID, tag or digest, for a container: NotFound
// when the node does not have it or lacks one of its layers, FailedPrecondition
// when the signature policy refuses it.
func (s *Service) Resolve(_ context.Context, spec *runtimeapi.ImageSpec) (store.Image, error) {
	img, err := s.present(spec)
	if err == nil {
		err = s.permitted(img)
	}
	return img, err
}

// present is Resolve, whether the image may be used or not.
func (s *Service) present(spec *runtimeapi.ImageSpec) (store.Image, error) {
	img, err := s.find(spec.GetImage(), spec.GetRuntimeHandler())
	if err == nil && !s.complete(img) {
		err = fmt.Errorf("find image %q: a layer is missing, pull it again: %w", spec.GetImage(), errdefs.ErrNotFound)
	}
	return img, err
}

// find looks an image up by ID, short ID, tag or digest. A name may stand for
// another image on the platform of a runtime handler; an ID does not.
func (s *Service) find(name, handler string) (store.Image, error) {
	if name == "" {
		return store.Image{}, fmt.Errorf("find image: no name given: %w", errdefs.ErrInvalidArgument)
	}
	if looksLikeID.MatchString(name) {
		img, err := s.db.Image(name)
		if err == nil || wholeID.MatchString(name) {
			return img, err
		}
	}
	ref, err := ParseRef(name)
	if err != nil {
		return store.Image{}, fmt.Errorf("find image: %w", err)
	}
	ref.Platform = s.others[handler]
	if img, ok := s.db.ImageByRef(ref.key(ref.String())); ok {
		return img, nil
	}
	return store.Image{}, fmt.Errorf("find image %s: %w", ref, errdefs.ErrNotFound)
}

// complete reports whether all layers of the image are here.
func (s *Service) complete(img store.Image) bool {
	for _, l := range img.Layers {
		if _, err := s.db.Layer(l); err != nil {
			return false
		}
	}
	return true
}

// ListImages lists the images on the node, or the one the filter names.
func (s *Service) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.list(req.GetFilter())
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return &runtimeapi.ListImagesResponse{Images: slices.Collect(images)}, nil
}

// StreamImages lists like ListImages, in parts.
func (s *Service) StreamImages(req *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.list(req.GetFilter())
	if err != nil {
		return fmt.Errorf("stream images: %w", err)
	}
	if err := chunk.Send(images, func(part []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: part})
	}); err != nil {
		return fmt.Errorf("stream images: %w", err)
	}
	return nil
}

// list describes the images as they are asked for.
func (s *Service) list(filter *runtimeapi.ImageFilter) (iter.Seq[*runtimeapi.Image], error) {
	var images []store.Image
	if name := filter.GetImage().GetImage(); name == "" {
		images = s.db.Images()
	} else {
		img, err := s.find(name, filter.GetImage().GetRuntimeHandler())
		switch {
		case err == nil:
			images = []store.Image{img}
		case !errdefs.IsNotFound(err):
			return nil, err
		}
	}
	return func(yield func(*runtimeapi.Image) bool) {
		for _, img := range images {
			if s.complete(img) && !yield(s.describe(img)) {
				return
			}
		}
	}, nil
}

// ImageStatus describes one image; an image the node lacks is an empty
// response, not an error.
func (s *Service) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.present(req.GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image status: %w", err)
	}
	resp := &runtimeapi.ImageStatusResponse{Image: s.describe(img)}
	// Image stays the ID: whatever name was asked for, the answer is the same.
	resp.Image.Spec = &runtimeapi.ImageSpec{
		Image:              img.ID,
		Annotations:        req.GetImage().GetAnnotations(),
		UserSpecifiedImage: req.GetImage().GetUserSpecifiedImage(),
		RuntimeHandler:     req.GetImage().GetRuntimeHandler(),
	}
	if req.GetVerbose() {
		if resp.Info, err = s.info(img); err != nil {
			return nil, fmt.Errorf("image status of %s: %w", img.ID, err)
		}
	}
	return resp, nil
}

// info is the verbose part, under the key peers use.
func (s *Service) info(img store.Image) (map[string]string, error) {
	layers := make([]store.Layer, 0, len(img.Layers))
	for _, id := range img.Layers {
		l, err := s.db.Layer(id)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	raw, err := json.Marshal(map[string]any{
		"chainID":   topLayer(img),
		"imageSpec": json.RawMessage(img.Config),
		"manifest":  img.Manifest,
		"layers":    layers,
		"pulledAt":  img.PulledAt,
		"verified":  img.Verified,
	})
	return map[string]string{"info": string(raw)}, err
}

func topLayer(img store.Image) string {
	if len(img.Layers) == 0 {
		return ""
	}
	return img.Layers[len(img.Layers)-1]
}

// describe is the CRI's view of an image.
func (s *Service) describe(img store.Image) *runtimeapi.Image {
	tags, digests := img.Names()
	out := &runtimeapi.Image{
		Id: img.ID, RepoTags: tags, RepoDigests: digests, Size: img.SizeBytes, Pinned: s.isPinned(img),
		Spec: &runtimeapi.ImageSpec{Image: img.ID},
	}
	var cfg ocispec.Image
	if json.Unmarshal(img.Config, &cfg) == nil {
		out.Uid, out.Username = imageUser(cfg.Config.User)
	}
	return out
}

// imageUser splits an image's USER: a number is a uid, anything else a name;
// the group does not matter here.
func imageUser(user string) (*runtimeapi.Int64Value, string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return nil, ""
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		return &runtimeapi.Int64Value{Value: uid}, ""
	}
	return nil, user
}

// ImageFsInfo reports what images take (layers as counted when they were
// unpacked, blobs as counted when they were written: sums that are kept, not
// made) and, apart, what containers have written.
func (s *Service) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	bytes, inodes := s.blobs.Usage()
	layerBytes, layerInodes := s.db.LayerUsage()
	bytes, inodes = bytes+layerBytes, inodes+layerInodes
	lost, err := s.quarantined()
	for _, note := range lost {
		bytes, inodes = bytes+note.Layer.UsageBytes, inodes+note.Layer.UsageInodes
	}
	written, files, err2 := s.upper.use.measure(ctx, s.upper.Usage)
	if err = errors.Join(err, err2); err != nil {
		return nil, fmt.Errorf("image file system info: %w", err)
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{s.usage(bytes, inodes)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{s.usage(written, files)},
	}, nil
}

// usage names the same mount point for both file systems: they are one, and
// the kubelet takes different names for a split disk.
func (s *Service) usage(bytes, inodes uint64) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.StateDir},
		UsedBytes:  &runtimeapi.UInt64Value{Value: bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
	}
}

// writable are the containers' layers, and what they took when last measured.
type writable struct {
	*snapshot.Store
	use diskUse
}

// diskUse keeps the last walk over the writable layers. Walking may use a
// twentieth of the time: a small node always gets fresh figures, a large one
// is not kept busy by a kubelet that asks often.
type diskUse struct {
	mu            sync.Mutex
	at            time.Time
	cost          time.Duration
	bytes, inodes uint64
}

func (d *diskUse) measure(ctx context.Context, walk func(context.Context) (uint64, uint64, error)) (uint64, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	start := time.Now()
	if !d.at.IsZero() && d.cost > 5*time.Millisecond && start.Sub(d.at) < 20*d.cost {
		return d.bytes, d.inodes, nil
	}
	bytes, inodes, err := walk(ctx)
	if err != nil {
		return 0, 0, err
	}
	d.bytes, d.inodes, d.at, d.cost = bytes, inodes, time.Now(), time.Since(start)
	return bytes, inodes, nil
}
