package kubernetes

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// nameLabel selects a part's pods.
const nameLabel = "app.kubernetes.io/name"

// configuration is what of a part's configuration has to do with the objects. (That all of it loads is tested beside
// each service.)
type configuration struct {
	Upstreams struct{ DNS string }
	Auth      struct{ URL string }
	Defaults  struct {
		Services map[string]struct{ DNS string }
	}
	Drain struct{ Timeout metav1.Duration }
}

func readConfiguration(t *testing.T, o *objects, part string) (cfg configuration) {
	t.Helper()
	for name, m := range o.configs {
		if text := m.Data[part+".yaml"]; strings.HasPrefix(name, part+"-") && text != "" {
			if err := yaml.Unmarshal([]byte(text), &cfg); err != nil {
				t.Fatalf("%s.yaml: %v", part, err)
			}
			return cfg
		}
	}
	t.Fatalf("no ConfigMap with %s.yaml", part)
	return cfg
}

func TestEveryPartIsComplete(t *testing.T) {
	o := build(t)
	want := []string{"auth-service", "echo-backend", "gateway", "lb"}
	for kind, got := range map[string][]string{
		"Deployment":              slices.Sorted(maps.Keys(o.deployments)),
		"Service":                 slices.Sorted(maps.Keys(o.services)),
		"HorizontalPodAutoscaler": slices.Sorted(maps.Keys(o.scalers)),
		"PodDisruptionBudget":     slices.Sorted(maps.Keys(o.budgets)),
		"monitor":                 slices.Sorted(maps.Keys(merged(o))),
	} {
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", kind, got, want)
		}
	}
	for name, d := range o.deployments {
		pod := d.Spec.Template
		if !matches(d.Spec.Selector, pod.Labels) || !matches(o.budgets[name].Spec.Selector, pod.Labels) {
			t.Errorf("%s: its pods are not those that it, or its budget, selects", name)
		}
		if ref := o.scalers[name].Spec.ScaleTargetRef; ref.Kind != "Deployment" || ref.Name != name {
			t.Errorf("%s: its autoscaler scales %s %s", name, ref.Kind, ref.Name)
		}
		if o.scalers[name].Spec.MinReplicas == nil || *o.scalers[name].Spec.MinReplicas < 2 {
			t.Errorf("%s: fewer than two replicas", name)
		}
		if a := pod.Spec.Affinity; a == nil || a.PodAntiAffinity == nil {
			t.Errorf("%s: its replicas may share a node", name)
		}
		drain := 10 * time.Second // echo-backend's, which is fixed
		if name != "echo-backend" {
			drain = readConfiguration(t, o, name).Drain.Timeout.Duration
		}
		if drain == 0 {
			t.Errorf("%s: its configuration does not say drain.timeout, which the pod's grace period depends on", name)
		}
		container := pod.Spec.Containers[0]
		pause := container.Lifecycle.PreStop.Sleep.Seconds
		if grace := *pod.Spec.TerminationGracePeriodSeconds; float64(grace-pause) < drain.Seconds()+5 {
			t.Errorf("%s: killed %d s after SIGTERM, but drains for %v", name, grace-pause, drain)
		}
		checkContainer(t, name, container)
		checkVolumes(t, o, name, pod.Spec)
	}
}

// merged are the names of both kinds of monitors.
func merged(o *objects) map[string]bool {
	names := map[string]bool{}
	for n := range o.monitors {
		names[n] = true
	}
	for n := range o.pods {
		names[n] = true
	}
	return names
}

// What a part's configuration reads from its secret is what docs/deploy.md has people put there.
func TestSecretsAreDocumented(t *testing.T) {
	manual, err := os.ReadFile("../../docs/deploy.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := strings.ReplaceAll(string(manual), "\\\n", " ")
	put, wanted := regexp.MustCompile(`--from-file=([a-z.-]+)`), regexp.MustCompile(`/run/secrets/([a-z.-]+)`)
	for name := range build(t).deployments {
		_, rest, found := strings.Cut(commands, "create secret generic "+name+" ")
		if !found {
			t.Errorf("%s: docs/deploy.md makes no secret of this name", name)
			continue
		}
		command, _, _ := strings.Cut(rest, "\n")
		config, err := os.ReadFile("base/config/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := names(put, command), names(wanted, string(config)); !slices.Equal(got, want) {
			t.Errorf("%s: docs/deploy.md puts %q into its secret, its configuration wants %q", name, got, want)
		}
	}
}

// names are what the first group of a pattern matches, sorted.
func names(pattern *regexp.Regexp, text string) (found []string) {
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	slices.Sort(found)
	return found
}

func matches(s *metav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if labels[k] != v {
			return false
		}
	}
	return len(s.MatchExpressions) == 0
}

func checkContainer(t *testing.T, name string, c corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	if s == nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s: got security context %+v, want no privileges", name, s)
	}
	if c.StartupProbe == nil || c.ReadinessProbe == nil || c.LivenessProbe == nil {
		t.Fatalf("%s: wants three probes", name)
	}
	if r, l := c.ReadinessProbe.HTTPGet.Path, c.LivenessProbe.HTTPGet.Path; r != "/readyz" || l != "/healthz" {
		t.Errorf("%s: probes ask %s and %s, want /readyz and /healthz", name, r, l)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%s: wants requests, and a limit of memory", name)
	}
	for _, e := range c.Env {
		if e.Name != "GOMEMLIMIT" {
			continue
		}
		soft, err := resource.ParseQuantity(strings.TrimSuffix(e.Value, "B")) // MiB to Mi
		if err != nil {
			t.Errorf("%s: GOMEMLIMIT: %v", name, err)
		}
		if share := soft.AsApproximateFloat64() / c.Resources.Limits.Memory().AsApproximateFloat64(); share < 0.7 || share > 0.85 {
			t.Errorf("%s: GOMEMLIMIT is %.0f %% of the limit, want about 80", name, share*100)
		}
	}
}

// checkVolumes holds the configuration's volume against the ConfigMaps there are.
func checkVolumes(t *testing.T, o *objects, name string, pod corev1.PodSpec) {
	t.Helper()
	for _, v := range pod.Volumes {
		switch {
		case v.ConfigMap != nil:
			if m := o.configs[v.ConfigMap.Name]; m == nil || m.Data[name+".yaml"] == "" {
				t.Errorf("%s: no ConfigMap %s with %s.yaml", name, v.ConfigMap.Name, name)
			}
		case v.Secret != nil:
			if v.Secret.SecretName != name || *v.Secret.DefaultMode != 0o440 {
				t.Errorf("%s: secret %s, mode %o; want its own, readable by its group only", name, v.Secret.SecretName, *v.Secret.DefaultMode)
			}
		}
	}
}

// portsOf are the ports of a part's pods by name.
func portsOf(o *objects, part string) map[string]int32 {
	ports := map[string]int32{}
	for _, p := range o.deployments[part].Spec.Template.Spec.Containers[0].Ports {
		ports[p.Name] = p.ContainerPort
	}
	return ports
}

func TestServices(t *testing.T) {
	o := build(t)
	for name, s := range o.services {
		if s.Spec.Selector[nameLabel] != name {
			t.Errorf("service %s selects %v", name, s.Spec.Selector)
		}
		for _, p := range s.Spec.Ports {
			if portsOf(o, name)[p.TargetPort.StrVal] == 0 {
				t.Errorf("service %s: pods have no port %s", name, p.TargetPort.StrVal)
			}
		}
		if name == "lb" {
			if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
				t.Errorf("service lb: got %s, %s; want a LoadBalancer that keeps devices' addresses", s.Spec.Type, s.Spec.ExternalTrafficPolicy)
			}
		} else if s.Spec.ClusterIP != corev1.ClusterIPNone {
			t.Errorf("service %s is not headless: its name would not lead to every replica", name)
		}
	}
}

func TestNetworkPolicies(t *testing.T) {
	o := build(t)
	for _, part := range slices.Sorted(maps.Keys(o.deployments)) {
		if p := o.policies[part]; p == nil || p.Spec.PodSelector.MatchLabels[nameLabel] != part {
			t.Errorf("no policy of its own for %s", part)
		}
	}
	if p := o.policies["default-deny"]; p == nil || len(p.Spec.PodSelector.MatchLabels) != 0 || len(p.Spec.Ingress)+len(p.Spec.Egress) != 0 || len(p.Spec.PolicyTypes) != 2 {
		t.Errorf("default-deny: got %+v, want nothing allowed, both ways, for all pods", p)
	}
	for name, p := range o.policies {
		part := p.Spec.PodSelector.MatchLabels[nameLabel]
		for _, rule := range p.Spec.Ingress {
			for _, port := range rule.Ports {
				if part != "" && portsOf(o, part)[port.Port.StrVal] == 0 {
					t.Errorf("policy %s: pods of %s have no port %q", name, part, port.Port.StrVal)
				}
			}
		}
		for _, rule := range p.Spec.Egress {
			for _, peer := range rule.To {
				to := peer.PodSelector.MatchLabels[nameLabel]
				for _, port := range rule.Ports {
					if o.deployments[to] == nil || !slices.Contains(slices.Collect(maps.Values(portsOf(o, to))), port.Port.IntVal) {
						t.Errorf("policy %s: nobody called %q listens on %d", name, to, port.Port.IntVal)
					}
				}
			}
		}
	}
}

func TestMonitors(t *testing.T) {
	o := build(t)
	for name, m := range o.monitors {
		if m.Spec.JobLabel != nameLabel || o.services[m.Spec.Selector.MatchLabels[nameLabel]] == nil || m.Spec.Endpoints[0].Port != "admin" {
			t.Errorf("monitor %s: got %+v, want the port admin of a service, and its name as job", name, m.Spec)
		}
	}
	for name, m := range o.pods {
		if m.Spec.JobLabel != nameLabel || o.deployments[m.Spec.Selector.MatchLabels[nameLabel]] == nil || *m.Spec.PodMetricsEndpoints[0].Port != "admin" {
			t.Errorf("monitor %s: got %+v, want the port admin of pods, and their name as job", name, m.Spec)
		}
	}
}

// TestConfigurationsNameServices: what parts call is there, on that port.
func TestConfigurationsNameServices(t *testing.T) {
	o := build(t)
	lb, gw := readConfiguration(t, o, "lb"), readConfiguration(t, o, "gateway")
	for address, port := range map[string]string{
		lb.Upstreams.DNS:                           "device",
		gw.Defaults.Services["echo"].DNS:           "link",
		strings.TrimPrefix(gw.Auth.URL, "http://"): "http",
	} {
		name, number, _ := strings.Cut(address, ":")
		found := false
		if s := o.services[name]; s != nil {
			for _, p := range s.Spec.Ports {
				found = found || p.Name == port && number == strconv.Itoa(int(p.Port))
			}
		}
		if !found {
			t.Errorf("%s: no such service with a port %s", address, port)
		}
	}
}

func TestDecodingIsStrict(t *testing.T) {
	o := &objects{services: map[string]*corev1.Service{}}
	err := o.add("v1 Service", "x", []byte("apiVersion: v1\nkind: Service\nspec: {clusterIp: None}\n"))
	if err == nil {
		t.Error("clusterIp (for clusterIP) was accepted")
	}
}
