/* The preference core: derivatives against finite differences, exact statements, refusals, schedules. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"

static const double LN2 = 0.693147180559945309417232121458;
static uint64_t counter;
static double uniform(double lo, double hi) {
    return lo + (hi - lo) * ((double)(wrpo__random64(7, 20, counter++) >> 11) / 9007199254740992.0);
}
/* to the last bit, sign of zero included */
static bool same(double a, double b) { return memcmp(&a, &b, sizeof a) == 0; }

/* A record of `sources` sources, the target and `rejected` rejected ones. The log-ratios are of a size that keeps z
   moderate. */
enum { SOURCES = 3 };  /* models whose log-probs a response has */
static int record(wrpo_response *r, int sources, int target, int rejected, double spread) {
    int n = 0;
    double total = 0;
    static wrpo_source_logp given[8][SOURCES];       /* the last record's */
    for (int i = 0; i < sources + target + rejected; i++, n++) {
        r[n] = (wrpo_response){.role = i < sources        ? WRPO_ROLE_SOURCE
                                   : i < sources + target ? WRPO_ROLE_TARGET
                                                          : WRPO_ROLE_REJECTED};
        r[n].tokens = (int64_t)uniform(1, 60);
        r[n].ref = uniform(-90, -1);
        r[n].logp = r[n].ref + uniform(-spread, spread);
        if (i < sources) total += r[n].share = uniform(0.1, 1);
        for (int k = 0; k < SOURCES; k++) {
            given[n][k].tokens = (int64_t)uniform(1, 60);
            given[n][k].logp = (double)given[n][k].tokens * uniform(-3, -0.01);
        }
        r[n].source_logps = given[n];
        r[n].sources = SOURCES;
    }
    for (int i = 0; i < sources; i++) r[i].share = sources == 1 ? 1 : r[i].share / total;
    return n;
}

/* Every method x pair x smoothing x shape of record: dL/dlogp against a five-point difference. */
static void test_derivatives(void) {
    /* the last two: in pairs */
    static const int shapes[][3] = {{1, 1, 1}, {3, 1, 1}, {2, 1, 3}, {3, 0, 3}, {2, 1, 4}};
    double worst = 0;
    for (int method = 0; wrpo_method_name(method); method++) {
        double worst_of_method = 0;
        int compared = 0;
        for (int pair = 0; wrpo_pair_name(pair); pair++)
            for (int smooth = 0; smooth < 3; smooth++)
                for (int shape = 0; shape < 5; shape++)
                    for (int trial = 0; trial < 20; trial++) {
                        wrpo_response r[8];
                        wrpo_loss_desc d = {
                            .method = (wrpo_method)method, .pair = (wrpo_pair)pair, .ipo_sum = trial % 2 == 1};
                        if (smooth && wrpo__rules[method].link != WRPO__LOGISTIC) continue;
                        d.label_smoothing = smooth * 0.2;
                        d.beta = wrpo__rules[method].beta * uniform(0.5, 2);
                        if (trial % 3 == 0) d.gamma_ratio = WRPO_ZERO;
                        d.fusion = (wrpo_fusion)(trial % 4);
                        if (trial % 5 == 0 && method != WRPO_METHOD_SFT) d.sft_weight = uniform(0.01, 2);
                        int n = record(r, shapes[shape][0], shapes[shape][1], shapes[shape][2], 2 / d.beta);
                        double alpha = trial == 0 || shape == 3 ? shape == 3
                            : trial == 1                        ? 1
                                                                : uniform(0, 1),
                               tokens = 100;
                        for (int i = 0; shape == 3 && i < n; i++) r[i].pair_id = i % 3 + 1;
                        for (int i = 0; shape == 4 && i < n; i++)
                            r[i].pair_id = i == 0 ? 7 : i == 3 || i == 4 ? 7 : i % 2;
                        const char *why = "";
                        double loss = wrpo_loss(&d, alpha, r, n, tokens, &why);
                        CHECK(isfinite(loss) && why == NULL, "%s", why ? why : "NaN");
                        double scale = 0;      /* derivatives of one record are judged by the largest of them */
                        for (int i = 0; i < n; i++) scale = fmax(scale, fabs(r[i].dlogp));
                        for (int i = 0; i < n; i++) {
                            wrpo_response t[8];
                            double f[4], fused[4], h = 1e-3 / d.beta;
                            for (int k = 0; k < 4; k++) {
                                memcpy(t, r, sizeof t);
                                t[i].logp += h * (double)(k < 2 ? k - 2 : k - 1);
                                f[k] = wrpo_loss(&d, alpha, t, n, tokens, NULL);
                                fused[k] = wrpo__fused_logp(&d, &t[i]);
                            }
                            /* across a change of the source with the largest margin */
                            if (wrpo__rules[method].reference == WRPO__FUSED && fused[0] != fused[3]) continue;
                            compared++;
                            /* across the kink */
                            if (method == WRPO_METHOD_HINGE && fabs(f[0] + f[3] - 2 * loss) > 1e-9) continue;
                            double want = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h);
                            double e = fabs(want - r[i].dlogp) / fmax(scale, 1e-12);
                            worst_of_method = test_larger(worst_of_method, e);
                        }
                    }
        CHECK(worst_of_method < 1e-8 && compared > 1000, "%s: worst relative error %.3g of %d derivatives",
              wrpo_method_name(method), worst_of_method, compared);
        worst = test_larger(worst, worst_of_method);
    }
    printf("derivatives against finite differences: worst relative error %.2g\n", worst);
}

/* The formulas once more, written out for three responses, as the papers have them. */
static void test_formulas(void) {
    for (int trial = 0; trial < 200; trial++) {
        wrpo_response r[3];
        record(r, 1, 1, 1, 40);
        const double b = uniform(0.005, 0.5), a = uniform(0, 1), eps = uniform(0, 0.49), gamma = uniform(0.1, 1),
                     tol = 1e-12;
        const double ds = r[0].logp - r[0].ref, dt = r[1].logp - r[1].ref, dl = r[2].logp - r[2].ref;
        const double ns = (double)r[0].tokens, nt = (double)r[1].tokens, nl = (double)r[2].tokens;
#define SIGMOID(x) (1 / (1 + exp(-(x))))
#define NEAR(x, y) CHECK(fabs((x) - (y)) <= tol * fmax(1, fabs(y)), "found %.17g, want %.17g", (double)(x), (double)(y))
        double z = b * (a * ds + (1 - a) * dt - dl), g = SIGMOID(z) - (1 - eps);
        wrpo_loss_desc d = {.beta = b, .label_smoothing = eps};
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), -(1 - eps) * log(SIGMOID(z)) - eps * log(SIGMOID(-z)));
        NEAR(r[0].dlogp, b * a * g);
        NEAR(r[1].dlogp, b * (1 - a) * g);
        NEAR(r[2].dlogp, -b * g);
        NEAR(wrpo__weighted_reward(&d, a, r, 3), b * (a * ds + (1 - a) * dt));

        d = (wrpo_loss_desc){.method = WRPO_METHOD_DPO, .pair = WRPO_PAIR_BOTH, .beta = b};
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), -(log(SIGMOID(b * (ds - dl))) + log(SIGMOID(b * (dt - dl)))) / 2);
        NEAR(wrpo__weighted_reward(&d, a, r, 3), b * (ds + dt) / 2);
        d = (wrpo_loss_desc){.method = WRPO_METHOD_DPO, .pair = WRPO_PAIR_SOURCE, .beta = b};
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), -log(SIGMOID(b * (ds - dl))));
        CHECK(same(r[1].dlogp, 0), "%g", r[1].dlogp);
        NEAR(wrpo__weighted_reward(&d, a, r, 3), b * ds);
        d = (wrpo_loss_desc){.method = WRPO_METHOD_HINGE, .beta = b};
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), fmax(0, 1 - b * (dt - dl)));
        d = (wrpo_loss_desc){.method = WRPO_METHOD_IPO, .beta = b};
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), pow(dt / nt - dl / nl - 1 / (2 * b), 2));
        NEAR(wrpo__weighted_reward(&d, a, r, 3), b * dt / nt);
        d.ipo_sum = true;
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), pow(dt - dl - 1 / (2 * b), 2));
        d = (wrpo_loss_desc){.method = WRPO_METHOD_SIMPO, .pair = WRPO_PAIR_SOURCE, .beta = b, .gamma_ratio = gamma};
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), -log(SIGMOID(b * (r[0].logp / ns - r[2].logp / nl) - gamma * b)));
        d = (wrpo_loss_desc){.method = WRPO_METHOD_DPO_NORM, .beta = b};
        NEAR(wrpo_loss(&d, a, r, 3, 1, NULL), -log(SIGMOID(b * (dt / nt - dl / nl))));
        d = (wrpo_loss_desc){.method = WRPO_METHOD_SFT};
        NEAR(wrpo_loss(&d, a, r, 3, 17, NULL), -r[0].logp / 17);
        NEAR(r[0].dlogp, -1.0 / 17);
        CHECK(same(r[1].dlogp, 0) && same(r[2].dlogp, 0), "sft touches y_wt or y_l");
        CHECK(wrpo__sft_tokens(r, 3) == ns && isnan(wrpo__weighted_reward(&d, a, r, 3)), "sft: tokens, reward");
    }
    /* K sources: one weighted reward for WRPO, a weighted mean of losses for a pair method */
    wrpo_response r[4];
    record(r, 2, 1, 1, 40);
    double tol = 1e-12, d0 = r[0].logp - r[0].ref, d1 = r[1].logp - r[1].ref, dt = r[2].logp - r[2].ref,
           dl = r[3].logp - r[3].ref;
    wrpo_loss_desc d = {0};
    double z = 0.01 * (0.3 * (r[0].share * d0 + r[1].share * d1) + 0.7 * dt - dl);
    NEAR(wrpo_loss(&d, 0.3, r, 4, 1, NULL), -log(SIGMOID(z)));
    d.method = WRPO_METHOD_DPO, d.pair = WRPO_PAIR_SOURCE;
    NEAR(wrpo_loss(&d, 0.3, r, 4, 1, NULL),
         -r[0].share * log(SIGMOID(0.01 * (d0 - dl))) - r[1].share * log(SIGMOID(0.01 * (d1 - dl))));
    d = (wrpo_loss_desc){.method = WRPO_METHOD_SIMPO};      /* the published settings: beta 10, gamma / beta 0.3 */
    NEAR(wrpo_loss(&d, 0, r, 4, 1, NULL),
         -log(SIGMOID(10 * (r[2].logp / (double)r[2].tokens - r[3].logp / (double)r[3].tokens) - 3)));
    /* FusePO: each source's best against its own worst */
    wrpo_response f[4];
    record(f, 2, 0, 2, 40);
    f[0].pair_id = f[3].pair_id = 1, f[1].pair_id = f[2].pair_id = 2;
    double z1 = 0.01 * (f[0].logp - f[0].ref - f[3].logp + f[3].ref),
           z2 = 0.01 * (f[1].logp - f[1].ref - f[2].logp + f[2].ref);
    for (int pair = 0; wrpo_pair_name(pair); pair++) {
        d = (wrpo_loss_desc){.method = WRPO_METHOD_DPO, .pair = (wrpo_pair)pair};
        NEAR(wrpo_loss(&d, 0, f, 4, 1, NULL), -f[0].share * log(SIGMOID(z1)) - f[1].share * log(SIGMOID(z2)));
        NEAR(f[2].dlogp, 0.01 * f[1].share * SIGMOID(-z2));
        NEAR(f[3].dlogp, -f[0].dlogp);
    }
    d = (wrpo_loss_desc){.method = WRPO_METHOD_SFT};        /* FuseSFT: the same file's best answers */
    NEAR(wrpo_loss(&d, 0, f, 4, 10, NULL), -(f[0].share * f[0].logp + f[1].share * f[1].logp) / 10);
    /* sft of a record without source: the one answer there is */
    r[0].role = WRPO_ROLE_TARGET;
    d = (wrpo_loss_desc){.method = WRPO_METHOD_SFT};
    NEAR(wrpo_loss(&d, 0, r, 1, 10, NULL), -r[0].logp / 10);
}

/* InfiFPO from its definition, in log-probs per token: clip, fuse, then dpo, wrpo or ipo on the differences. */
static double fused(const wrpo_response *y, wrpo_fusion fusion) {
    double l[SOURCES + 1] = {y->ref / (double)y->tokens}, c[SOURCES + 1], w[SOURCES + 1], sum = 0, mean = 0;
    const double now = y->logp / (double)y->tokens;
    int far = 0;
    for (int i = 0; i <= SOURCES; i++) {
        if (i) l[i] = y->source_logps[i - 1].logp / (double)y->source_logps[i - 1].tokens;
        c[i] = y->role == WRPO_ROLE_REJECTED ? fmin(l[i], l[0]) : fmax(l[i], l[0]);
        w[i] = exp(1 / (-l[i] + 1e-8));
        sum += w[i];
        mean += c[i] / (SOURCES + 1);
        const double pivot = fusion == WRPO_FUSION_MARGIN ? now : l[0];
        if (fabs(exp(l[i]) - exp(pivot)) > fabs(exp(l[far]) - exp(pivot))) far = i;
    }
    if (fusion == WRPO_FUSION_MEAN) return mean;
    if (fusion != WRPO_FUSION_CONFIDENCE) return c[far];
    mean = 0;
    for (int i = 0; i <= SOURCES; i++) mean += w[i] / sum * c[i];
    return mean;
}
static void test_infifpo(void) {
    const double tol = 1e-12;
    for (int trial = 0; trial < 400; trial++) {
        wrpo_response r[3], s[3];
        wrpo_source_logp own[3];
        record(r, 1, 1, 1, 40);
        for (int i = 0; i < 3; i++)                      /* 1 / -l: keep exp of it finite */
            for (int k = 0; k < SOURCES; k++) ((wrpo_source_logp *)r[i].source_logps)[k].logp -= 0.1 * 60;
        const wrpo_fusion fusion = (wrpo_fusion)(trial % 4);
        const double b = uniform(0.5, 5), a = uniform(0, 1);
        double d[3];
        for (int i = 0; i < 3; i++) d[i] = r[i].logp / (double)r[i].tokens - fused(&r[i], fusion);
        wrpo_loss_desc desc = {.method = WRPO_METHOD_INFIFPO, .beta = b, .fusion = fusion};
        NEAR(wrpo_loss(&desc, a, r, 3, 1, NULL), -log(SIGMOID(b * (d[1] - d[2]))));
        NEAR(r[1].dlogp, -b * SIGMOID(-b * (d[1] - d[2])) / (double)r[1].tokens);
        NEAR(wrpo__weighted_reward(&desc, a, r, 3), b * d[1]);
        desc.pair = WRPO_PAIR_SOURCE;
        NEAR(wrpo_loss(&desc, a, r, 3, 1, NULL), -log(SIGMOID(b * (d[0] - d[2]))));
        desc.method = WRPO_METHOD_INFIFPO_WRPO;
        NEAR(wrpo_loss(&desc, a, r, 3, 1, NULL), -log(SIGMOID(b * (a * d[0] + (1 - a) * d[1] - d[2]))));
        NEAR(wrpo__weighted_reward(&desc, a, r, 3), b * (a * d[0] + (1 - a) * d[1]));
        desc.sft_weight = 0.3;
        const double anchor = a * r[0].logp / (double)r[0].tokens + (1 - a) * r[1].logp / (double)r[1].tokens;
        NEAR(wrpo_loss(&desc, a, r, 3, 1, NULL), -log(SIGMOID(b * (a * d[0] + (1 - a) * d[1] - d[2]))) - 0.3 * anchor);
        desc = (wrpo_loss_desc){.method = WRPO_METHOD_INFIFPO_IPO, .beta = b, .fusion = fusion};
        NEAR(wrpo_loss(&desc, a, r, 3, 1, NULL), pow(d[1] - d[2] - 1 / (2 * b), 2));

        /* infifpo-wrpo at alpha 0 is infifpo on (y_wt, y_l) */
        desc = (wrpo_loss_desc){.method = WRPO_METHOD_INFIFPO_WRPO, .fusion = fusion};
        memcpy(s, r, sizeof s);
        const double mixed = wrpo_loss(&desc, 0, r, 3, 1, NULL);
        desc.method = WRPO_METHOD_INFIFPO;
        CHECK(same(mixed, wrpo_loss(&desc, 0.5, s, 3, 1, NULL)) && same(r[1].dlogp, s[1].dlogp) &&
                  same(r[2].dlogp, s[2].dlogp) && same(r[0].dlogp, 0),
              "alpha 0: infifpo-wrpo is not infifpo");
        /* the model before training as the only source: dpo-norm */
        for (int i = 0; i < 3; i++) {
            own[i] = (wrpo_source_logp){r[i].ref, r[i].tokens};
            r[i].source_logps = &own[i];
            r[i].sources = 1;
        }
        memcpy(s, r, sizeof s);
        desc.beta = b;
        const double infifpo = wrpo_loss(&desc, 0, r, 3, 1, NULL);
        desc.method = WRPO_METHOD_DPO_NORM;
        CHECK(same(infifpo, wrpo_loss(&desc, 0, s, 3, 1, NULL)) && same(r[1].dlogp, s[1].dlogp) &&
                  same(r[2].dlogp, s[2].dlogp),
              "one source, which is the reference: infifpo is not dpo-norm");
    }
    /* Clipping. Ten tokens each; the reference gives each response -1 a token, the policy -0.9. One source likes the
       chosen response better, -0.5, and the other one less, -2; with the rejected response it is the other way round.
       Per token the sources' probabilities are 0.607 and 0.135, the policy's is 0.407. The one of 0.135 is farther away
       both times. Of the chosen response it is clipped to the reference, -1; of the rejected one it stays, -2. */
    const wrpo_source_logp yw[2] = {{-5, 10}, {-20, 10}}, yl[2] = {{-20, 10}, {-5, 10}};
    wrpo_response r[2] = {
        {.role = WRPO_ROLE_TARGET, .tokens = 10, .logp = -9, .ref = -10, .source_logps = yw, .sources = 2},
        {.role = WRPO_ROLE_REJECTED, .tokens = 10, .logp = -9, .ref = -10, .source_logps = yl, .sources = 2}};
    wrpo_loss_desc d = {.method = WRPO_METHOD_INFIFPO, .beta = 2};
    NEAR(wrpo_loss(&d, 0, r, 2, 1, NULL), -log(SIGMOID(2 * ((-0.9 + 1) - (-0.9 + 2)))));
    d.fusion = WRPO_FUSION_MEAN;                         /* (-1 - 0.5 - 1) / 3 and (-1 - 2 - 1) / 3 */
    NEAR(wrpo_loss(&d, 0, r, 2, 1, NULL), -log(SIGMOID(2 * ((-0.9 + 2.5 / 3) - (-0.9 + 4.0 / 3)))));
}

static void test_exact(void) {
    for (int trial = 0; trial < 500; trial++) {
        wrpo_response r[3], s[3], t[2];
        record(r, 1, 1, 1, trial % 2 ? 3 : 300);
        wrpo_loss_desc wrpo = {.beta = uniform(0.001, 1), .label_smoothing = trial % 3 ? 0 : 0.1}, dpo = wrpo;
        dpo.method = WRPO_METHOD_DPO;
        memcpy(s, r, sizeof s), memcpy(t, r + 1, sizeof t);
        double a = wrpo_loss(&wrpo, 0, r, 3, 1, NULL), b = wrpo_loss(&dpo, 0.7, s, 3, 1, NULL),
               c = wrpo_loss(&dpo, 0, t, 2, 1, NULL);
        CHECK(same(a, b) && same(a, c), "alpha 0: wrpo %.17g, dpo %.17g, dpo on the pair alone %.17g", a, b, c);
        CHECK(same(r[1].dlogp, s[1].dlogp) && same(r[2].dlogp, s[2].dlogp) && same(r[1].dlogp, t[0].dlogp) &&
                  same(r[2].dlogp, t[1].dlogp),
              "alpha 0: derivatives differ from dpo");
        CHECK(same(r[0].dlogp, 0) && same(s[0].dlogp, 0), "alpha 0: the source has a derivative");
        r[0].logp = NAN;                                    /* not even computed */
        CHECK(same(wrpo_loss(&wrpo, 0, r, 3, 1, NULL), a) && same(wrpo_loss(&wrpo, WRPO_ZERO, r, 3, 1, NULL), a),
              "alpha 0 reads the source");
        memcpy(r, s, sizeof r);
        dpo.pair = WRPO_PAIR_SOURCE;
        a = wrpo_loss(&wrpo, 1, r, 3, 1, NULL), b = wrpo_loss(&dpo, 0, s, 3, 1, NULL);
        CHECK(same(a, b) && same(r[0].dlogp, s[0].dlogp) && same(r[1].dlogp, 0) && same(r[2].dlogp, s[2].dlogp),
              "alpha 1 is not dpo on the source");

        for (int i = 0; i < 3; i++) r[i].logp = r[i].ref;   /* step 0 */
        for (int pair = 0; pair < 3; pair++) {
            wrpo.pair = dpo.pair = (wrpo_pair)pair;
            wrpo.label_smoothing = trial % 4 ? uniform(0, 0.499) : 0;
            CHECK(same(wrpo_loss(&wrpo, uniform(0, 1), r, 3, 1, NULL), LN2), "step 0 is not ln 2");
            CHECK(same(wrpo_loss(&dpo, 0, r, 3, 1, NULL), LN2), "step 0 is not ln 2");
        }
        wrpo.label_smoothing = 0;
        wrpo_loss(&wrpo, 0.25, r, 3, 1, NULL);
        CHECK(same(r[0].dlogp, -wrpo.beta / 8) && same(r[2].dlogp, wrpo.beta / 2), "step 0: g is not -1/2");
    }
    /* saturation: |z| = 1e4, and one of the two sides is certain */
    for (int method = 0; method < WRPO_METHOD_SFT; method++)
        for (int sign = -1; sign <= 1; sign += 2)
            for (int smooth = 0; smooth < 2; smooth++) {
                wrpo_response r[3] = {{.role = WRPO_ROLE_SOURCE, .share = 1, .tokens = 10, .logp = -1, .ref = -1},
                                      {.role = WRPO_ROLE_TARGET, .tokens = 10},
                                      {.role = WRPO_ROLE_REJECTED, .tokens = 10}};
                wrpo_loss_desc d = {
                    .method = (wrpo_method)method, .beta = 1, .gamma_ratio = WRPO_ZERO, .ipo_sum = true};
                if (smooth && wrpo__rules[method].link != WRPO__LOGISTIC) continue;
                d.label_smoothing = smooth * 0.1;
                r[1].logp = sign * 1e4 * (wrpo__per_token(&d) ? 10 : 1);
                double loss = wrpo_loss(&d, 0, r, 3, 1, NULL), tokens = wrpo__per_token(&d) ? 10 : 1;
                CHECK(isfinite(loss) && isfinite(r[1].dlogp) && isfinite(r[2].dlogp), "%s at z = %g",
                      wrpo_method_name(method), sign * 1e4);
                if (wrpo__rules[method].link != WRPO__LOGISTIC) continue;
                double eps = d.label_smoothing, want = sign > 0 ? eps * 1e4 : (1 - eps) * 1e4;
                CHECK(fabs(loss - want) < 1e-9, "%s at z = %g: %g, want %g", wrpo_method_name(method), sign * 1e4, loss,
                      want);
                CHECK(same(r[1].dlogp, (sign > 0 ? eps : eps - 1) / tokens), "%s at z = %g: %g",
                      wrpo_method_name(method), sign * 1e4, r[1].dlogp);
            }
    wrpo_response q[3] = {{.role = WRPO_ROLE_SOURCE, .share = 1, .tokens = 1},
                          {.role = WRPO_ROLE_TARGET, .tokens = 1, .logp = 2},
                          {.role = WRPO_ROLE_REJECTED, .tokens = 1}};
    /* satisfied: nothing left to learn, and no negative zeros */
    wrpo_loss_desc hinge = {.method = WRPO_METHOD_HINGE, .beta = 1};
    CHECK(same(wrpo_loss(&hinge, 0, q, 3, 1, NULL), 0) && same(q[1].dlogp, 0) && same(q[2].dlogp, 0),
          "a satisfied hinge");
    wrpo_response r[3] = {{.role = WRPO_ROLE_SOURCE, .share = 1, .tokens = 1},
                          {.role = WRPO_ROLE_TARGET, .tokens = 1, .logp = 40},
                          {.role = WRPO_ROLE_REJECTED, .tokens = 1}};
    wrpo_loss_desc d = {.beta = 1};                         /* z = 40: 1 - sigmoid(z) would have cancelled to 0 */
    wrpo_loss(&d, 0, r, 3, 1, NULL);
    CHECK(fabs(r[1].dlogp / -exp(-40) - 1) < 1e-12, "z = 40: %g", r[1].dlogp);
}

static void refuse(wrpo_loss_desc d, double alpha, wrpo_response *r, int n, double tokens, const char *word) {
    const char *why = NULL;
    double loss = wrpo_loss(&d, alpha, r, n, tokens, &why);
    CHECK(isnan(loss) && why && strstr(why, word), "want a refusal about \"%s\", found %g, \"%s\"", word, loss,
          why ? why : "(none)");
    for (int i = 0; i < n; i++) CHECK(same(r[i].dlogp, 0), "a refused record has derivatives");
    CHECK(isnan(wrpo_loss(&d, alpha, r, n, tokens, NULL)), "why NULL");
}
/* What InfiFPO needs of a response, and the anchor. */
static void test_source_refusals(void) {
    wrpo_response r[3], bad[3];
    const char *why;
    record(r, 1, 1, 1, 3);
    const wrpo_source_logp wrong[][3] = {{{-1, 4}, {NAN, 4}, {-1, 4}}, {{-1, 4}, {0.5, 4}, {-1, 4}},
                                         {{-1, 4}, {-1, 0}, {-1, 4}}, {{-INFINITY, 4}, {-1, 4}, {-1, 4}}};
    const wrpo_loss_desc d = {.method = WRPO_METHOD_INFIFPO_WRPO};
    for (int k = 0; k < 5; k++) {
        memcpy(bad, r, sizeof bad);
        if (k < 4) bad[1].source_logps = wrong[k];
        else bad[1].sources = 0;
        CHECK(isnan(wrpo_loss(&d, 0.5, bad, 3, 1, &why)) && why && strstr(why, "source_logps"), "%d: %s", k, why);
        CHECK(bad[0].dlogp == 0 && bad[2].dlogp == 0, "derivatives after a failure");
    }
    wrpo_loss_desc e = {.fusion = (wrpo_fusion)9};
    CHECK(isnan(wrpo_loss(&e, 0, r, 3, 1, &why)) && why && strstr(why, "fusion"), "%s", why);
    static const double weights[] = {-1, NAN, INFINITY};
    for (int k = 0; k < 3; k++) {
        e = (wrpo_loss_desc){.sft_weight = weights[k]};
        CHECK(isnan(wrpo_loss(&e, 0, r, 3, 1, &why)) && why && strstr(why, "sft_weight"), "%s", why);
    }
    e = (wrpo_loss_desc){.method = WRPO_METHOD_SFT, .sft_weight = 1};
    CHECK(isnan(wrpo_loss(&e, 0, r, 3, 1, &why)) && why && strstr(why, "sft_weight"), "%s", why);
}
static void test_refusals(void) {
    wrpo_response r[4], s[4];
    const wrpo_loss_desc d = {0};
    record(r, 1, 1, 1, 10);
#define WITH(...) ((wrpo_loss_desc){__VA_ARGS__})
    s[0] = r[0], s[1] = r[2], s[0].pair_id = 1;
    refuse(WITH(.method = WRPO_METHOD_DPO), 0, s, 2, 1, "no rejected one in its pair");
    refuse(WITH(.beta = -1), 0.1, r, 3, 1, "beta");
    refuse(WITH(.beta = NAN), 0.1, r, 3, 1, "beta");
    refuse(WITH(.beta = INFINITY), 0.1, r, 3, 1, "beta");
    refuse(WITH(.beta = WRPO_ZERO), 0.1, r, 3, 1, "beta");
    CHECK(same(wrpo_loss(NULL, 0.1, r, 3, 1, NULL), wrpo_loss(&(wrpo_loss_desc){0}, 0.1, r, 3, 1, NULL)),
          "a desc of NULL is {0}");
    refuse(d, -0.01, r, 3, 1, "alpha");
    refuse(d, 1.01, r, 3, 1, "alpha");
    refuse(d, NAN, r, 3, 1, "alpha");
    refuse(WITH(.method = WRPO_METHOD_DPO), 2, r, 3, 1, "alpha");
    refuse(WITH(.label_smoothing = 0.5), 0.1, r, 3, 1, "label_smoothing");
    refuse(WITH(.label_smoothing = -0.1), 0.1, r, 3, 1, "label_smoothing");
    refuse(WITH(.label_smoothing = NAN), 0.1, r, 3, 1, "label_smoothing");
    refuse(WITH(.method = WRPO_METHOD_IPO, .label_smoothing = 0.1), 0.1, r, 3, 1, "label_smoothing");
    refuse(WITH(.method = WRPO_METHOD_HINGE, .label_smoothing = 0.1), 0.1, r, 3, 1, "label_smoothing");
    refuse(WITH(.method = WRPO_METHOD_SFT, .label_smoothing = 0.1), 0.1, r, 3, 1, "label_smoothing");
    refuse(WITH(.method = WRPO_METHOD_SIMPO, .gamma_ratio = -1), 0.1, r, 3, 1, "gamma_ratio");
    refuse(WITH(.method = (wrpo_method)99), 0.1, r, 3, 1, "method");
    refuse(WITH(.pair = (wrpo_pair)3), 0.1, r, 3, 1, "pair");
    refuse(WITH(.method = WRPO_METHOD_SFT), 0.1, r, 3, 0, "sft_tokens");
    refuse(WITH(.method = WRPO_METHOD_SFT), 0.1, r, 3, NAN, "sft_tokens");
    refuse(d, 0.1, r + 1, 2, 1, "source");                  /* a pair: needs alpha 0, or a pair method */
    CHECK(isfinite(wrpo_loss(&d, 0, r + 1, 2, 1, NULL)), "wrpo at alpha 0 on a pair");
    refuse(WITH(.method = WRPO_METHOD_DPO, .pair = WRPO_PAIR_SOURCE), 0, r + 1, 2, 1, "source");
    refuse(WITH(.method = WRPO_METHOD_DPO, .pair = WRPO_PAIR_BOTH), 0, r + 1, 2, 1, "source");
    memcpy(s, r, sizeof s);
    s[1] = r[2];                                            /* source and rejected */
    refuse(d, 0.1, s, 2, 1, "target");
    CHECK(isfinite(wrpo_loss(&d, 1, s, 2, 1, NULL)), "wrpo at alpha 1 without target");
    refuse(d, 0.1, r, 2, 1, "rejected");
    refuse(d, 0.1, r, 0, 1, "needs");
    refuse(WITH(.method = WRPO_METHOD_SFT), 0, r + 2, 1, 1, "sft");
    memcpy(s, r, sizeof s), s[0].share = 0.5;
    refuse(d, 0.1, s, 3, 1, "shares");
    memcpy(s, r, sizeof s), s[0].share = NAN;
    refuse(d, 0.1, s, 3, 1, "shares");
    memcpy(s, r, sizeof s), s[0].role = WRPO_ROLE_TARGET;
    refuse(d, 0, s, 3, 1, "one target");
    memcpy(s, r, sizeof s), s[0].role = (wrpo_role)5;
    refuse(d, 0, s, 3, 1, "role");
    memcpy(s, r, sizeof s), s[1].tokens = 0;
    refuse(WITH(.method = WRPO_METHOD_IPO), 0, s, 3, 1, "tokens");
    refuse(WITH(.method = WRPO_METHOD_SIMPO), 0, s, 3, 1, "tokens");
    refuse(WITH(.method = WRPO_METHOD_DPO_NORM, .pair = WRPO_PAIR_BOTH), 0, s, 3, 1, "tokens");
    CHECK(isfinite(wrpo_loss(&WITH(.method = WRPO_METHOD_IPO, .ipo_sum = true), 0, s, 3, 1, NULL)), "ipo on sums");
    for (int i = 0; i < 3; i++)
        for (int bad = 0; bad < 3; bad++) {
            memcpy(s, r, sizeof s);
            *(i % 2 ? &s[i].logp : &s[i].ref) = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
            refuse(d, 0.1, s, 3, 1, "finite");
        }
    const wrpo_loss_desc once = wrpo__loss_defaults(WITH(.method = WRPO_METHOD_SIMPO, .gamma_ratio = WRPO_ZERO)),
                         twice = wrpo__loss_defaults(once);
    CHECK(once.beta == 10 && once.gamma_ratio < 1e-200 && twice.gamma_ratio == once.gamma_ratio && twice.beta == 10,
          "defaults resolved twice");
    CHECK(wrpo__loss_defaults(d).beta == 0.01 && wrpo__loss_defaults(d).gamma_ratio == 0.3, "defaults");
    CHECK(isnan(wrpo__weighted_reward(&d, 0.1, r + 1, 2)), "a weighted reward without its source");
}

static void test_schedules(void) {
    for (int64_t T = 1; T < 40; T += 3)
        for (int64_t k = -2; k <= T + 2; k++) {
            const double end = 0.1, u = fmin(fmax((double)k / (double)T, 0), 1);
            CHECK(same(wrpo_alpha(WRPO_ALPHA_SCHEDULE_LINEAR, 0, end, k, T), end * u), "linear %lld/%lld", (long long)k,
                  (long long)T);
            CHECK(same(wrpo_alpha(WRPO_ALPHA_SCHEDULE_CONSTANT, 0, end, k, T), end), "constant");
            CHECK(fabs(wrpo_alpha(WRPO_ALPHA_SCHEDULE_POWER, 0, end, k, T) - end * u * u) < 1e-16, "power, 0 = 2");
            CHECK(fabs(wrpo_alpha(WRPO_ALPHA_SCHEDULE_POWER, 3, end, k, T) - end * u * u * u) < 1e-16, "power 3");
            CHECK(fabs(wrpo_alpha(WRPO_ALPHA_SCHEDULE_COSINE, 0, end, k, T) - end * (1 - cos(acos(-1) * u)) / 2) <
                      1e-16,
                  "cosine");
            for (int ramp = 0; wrpo_alpha_schedule_name(ramp); ramp++)
                CHECK(same(wrpo_alpha((wrpo_alpha_schedule)ramp, 0, WRPO_ZERO, k, T), 0), "an end of zero");
            for (int64_t w = 0; w <= T; w += 2) {           /* transformers' get_*_schedule_with_warmup */
                const int64_t c = k < 0 ? 0 : k > T ? T : k;
                const double up = (double)c / fmax(1, (double)w), rest = fmax(1, (double)(T - w));
                CHECK(same(wrpo_lr_factor(WRPO_LR_SCHEDULE_COSINE, w, k, T),
                           c < w ? up : fmax(0, 0.5 * (1 + cos(acos(-1) * ((double)(c - w) / rest))))),
                      "cosine");
                CHECK(same(wrpo_lr_factor(WRPO_LR_SCHEDULE_LINEAR, w, k, T),
                           c < w ? up : fmax(0, (double)(T - c) / rest)),
                      "linear");
                CHECK(same(wrpo_lr_factor(WRPO_LR_SCHEDULE_CONSTANT, w, k, T), c < w ? up : 1), "constant");
            }
        }
    /* numbers from transformers 4: T = 10, warm-up 3 */
    static const double cosine[] = {0, 1.0 / 3, 2.0 / 3, 1, 0.9504844339512095, 0.8117449009293668, 0.6112604669781572,
                                    0.38873953302184283, 0.1882550990706332, 0.04951556604879043, 0};
    for (int k = 0; k <= 10; k++)
        CHECK(fabs(wrpo_lr_factor(WRPO_LR_SCHEDULE_COSINE, 3, k, 10) - cosine[k]) < 1e-15, "cosine at %d", k);
    CHECK(same(wrpo_alpha(WRPO_ALPHA_SCHEDULE_LINEAR, 0, 0.1, 0, 0), 0.1) &&
              same(wrpo_alpha(WRPO_ALPHA_SCHEDULE_LINEAR, 0, 0.1, 0, 1), 0),
          "T = 0, 1");
    CHECK(same(wrpo_lr_factor(WRPO_LR_SCHEDULE_COSINE, 0, 0, 0), 1) &&
              same(wrpo_lr_factor(WRPO_LR_SCHEDULE_COSINE, 1, 0, 1), 0),
          "T = 0, 1");
    CHECK(same(wrpo_lr_factor(WRPO_LR_SCHEDULE_COSINE, 5, 2, 3), 0.4), "a warm-up longer than the run");
    CHECK(isnan(wrpo_alpha((wrpo_alpha_schedule)9, 0, 1, 1, 2)) && isnan(wrpo_lr_factor((wrpo_lr_schedule)9, 0, 1, 2)),
          "unknown schedules");
    CHECK(isnan(wrpo_alpha(WRPO_ALPHA_SCHEDULE_POWER, -1, 1, 1, 2)) &&
              isnan(wrpo_alpha(WRPO_ALPHA_SCHEDULE_POWER, NAN, 1, 1, 2)),
          "a power below 0");
}

static void test_names(void) {
    static const char *const methods[] = {"wrpo", "dpo", "ipo", "hinge", "simpo", "dpo-norm", "sft",
                                          "infifpo", "infifpo-wrpo", "infifpo-ipo", NULL};
    for (int i = 0; i < 11; i++)
        CHECK(methods[i] ? !strcmp(wrpo_method_name(i), methods[i]) : !wrpo_method_name(i), "method %d", i);
    CHECK(!strcmp(wrpo_method_name(WRPO_METHOD_DPO_NORM), "dpo-norm") &&
              !strcmp(wrpo_pair_name(WRPO_PAIR_BOTH), "both"),
          "names");
    CHECK(!strcmp(wrpo_alpha_schedule_name(WRPO_ALPHA_SCHEDULE_POWER), "power") &&
              !strcmp(wrpo_lr_schedule_name(WRPO_LR_SCHEDULE_CONSTANT), "constant"),
          "names");
    CHECK(!wrpo_method_name(-1) && !wrpo_pair_name(3) && !wrpo_alpha_schedule_name(4) && !wrpo_lr_schedule_name(3),
          "past the last name");
}

int main(void) {
    test_derivatives();
    test_formulas();
    test_infifpo();
    test_exact();
    test_refusals();
    test_source_refusals();
    test_schedules();
    test_names();
    return test_end("20_loss");
}
