//! Who is let in by `serve`.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Who is let in")]
pub(in crate::config) struct AccessArgs {
    /// Directory of trusted tenants' certificates (*.pem) and account keys (*.pub); picked up and dropped while running
    #[arg(long, env = "LEASEMUX_TRUST_DIR", value_name = "DIR")]
    pub(in crate::config) trust_dir: Option<String>,
    /// Ask an Akash node for certificates and account keys, at its gRPC address; after --trust-dir, if both are given
    #[arg(long, env = "LEASEMUX_CHAIN_GRPC", value_name = "URL")]
    pub(in crate::config) chain_grpc: Option<String>,
    /// Who signs the certificate of an https node (PEM); without it, the system's authorities decide
    #[arg(long, env = "LEASEMUX_CHAIN_CA", value_name = "FILE")]
    pub(in crate::config) chain_ca: Option<String>,
    /// While the node does not answer, let known tenants go on for so long since it confirmed them
    #[arg(long, env = "LEASEMUX_CHAIN_GRACE", value_name = "TIME", default_value = "6h")]
    pub(in crate::config) chain_grace: Option<String>,
    /// The provider whose leases are served (akash1…): those of another one are refused. Must be given with --platform kube
    #[arg(long, env = "LEASEMUX_PROVIDER", value_name = "ADDRESS")]
    pub(in crate::config) provider: Option<String>,
    /// Certificate for the --public-hostname, signed by an authority (PEM): for clients with a token
    #[arg(long, env = "LEASEMUX_CA_TLS_CERT", value_name = "FILE")]
    pub(in crate::config) ca_tls_cert: Option<String>,
    /// The private key of --ca-tls-cert (PEM)
    #[arg(long, env = "LEASEMUX_CA_TLS_KEY", value_name = "FILE")]
    pub(in crate::config) ca_tls_key: Option<String>,
}
