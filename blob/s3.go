package blob

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/402claw/clawr"
)

// bucket is a prefix of one in S3-compatible storage.
type bucket struct {
	client *minio.Client
	name   string
	prefix string
}

func openBucket(name, prefix string, getenv func(string) string) (Store, error) {
	endpoint := getenv("AWS_ENDPOINT_URL_S3")
	if endpoint == "" {
		endpoint = getenv("AWS_ENDPOINT_URL")
	}
	if endpoint == "" {
		endpoint = "https://s3.amazonaws.com"
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "blob-url", Message: fmt.Sprintf("AWS_ENDPOINT_URL %q is no http or https URL", endpoint), Fix: "export AWS_ENDPOINT_URL=https://host"}
	}
	key, secret := getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY")
	if key == "" || secret == "" {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "blob-url", Message: "there are no credentials for " + name, Fix: "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…"}
	}
	region := getenv("AWS_REGION")
	if region == "" {
		region = "us-east-1"
	}
	// Of its own: the default's idle connections would outlive a node.
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, err
	}
	transport.ResponseHeaderTimeout = 30 * time.Second
	client, err := minio.New(u.Host, &minio.Options{Creds: credentials.NewStaticV4(key, secret, getenv("AWS_SESSION_TOKEN")), Secure: u.Scheme == "https",
		Region: region, Transport: transport, MaxRetries: 3})
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "blob-url", Message: "the storage cannot be used: " + err.Error(), Fix: "check --blob-url and AWS_ENDPOINT_URL", Err: err}
	}
	return &bucket{client, name, prefix}, nil
}

func (b *bucket) key(id string) string { return path.Join(b.prefix, id) }

func (b *bucket) Has(ctx context.Context, id string) (bool, error) {
	_, err := b.client.StatObject(ctx, b.name, b.key(id), minio.StatObjectOptions{})
	if absent(err) {
		return false, nil
	}
	return err == nil, err
}

// onePart is the largest file that storage takes in one piece.
const onePart = 5 << 30

func (b *bucket) Put(ctx context.Context, id, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = b.client.PutObject(ctx, b.name, b.key(id), f, st.Size(), minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: st.Size() <= onePart})
	return err
}

// Get waits for the first bytes, so that what is missing is an error here.
func (b *bucket) Get(ctx context.Context, id string) (io.ReadCloser, error) {
	o, err := b.client.GetObject(ctx, b.name, b.key(id), minio.GetObjectOptions{})
	if err == nil {
		_, err = o.Stat()
	}
	if absent(err) {
		return nil, fmt.Errorf("%s: %w", b.key(id), fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// absent reports whether storage said that there is no such object. A bucket
// that is missing is something else.
func absent(err error) bool {
	if err == nil {
		return false
	}
	r := minio.ToErrorResponse(err)
	return r.Code == minio.NoSuchKey || r.StatusCode == http.StatusNotFound && r.Code != minio.NoSuchBucket
}
