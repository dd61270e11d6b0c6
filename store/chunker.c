/*
 * chunker — hides the gear table, the masks, and how they are rolled over bytes.
 *
 * FastCDC (Xia et al., USENIX ATC 2016): no boundary is looked for before the minimum; up to the
 * target a boundary is four times less likely than the target asks for, and after it four times
 * more likely, so that sizes gather around the target.
 */
#include "store/chunker.h"

/* A boundary lies after a byte where so many top bits of the hash are zero. The top bits depend on
 * the last 64 bytes at most. */
#define BITS_BEFORE_TARGET 19
#define BITS_AFTER_TARGET 15
#define WINDOW_BYTES 64

/* gear[i]: the first 8 bytes, little-endian, of SHA-256("lake gear" || byte i). */
/* clang-format off */
static const uint64_t gear[256] = {
	0x07a41b8f93a46db2, 0x05180527c6242372, 0x6c3e5efa02cb4541, 0xd08539c4075b85ab,
	0xa5cb5cb296f4741f, 0x5014b7d981ab998e, 0x6a8a4e6dfc6841d3, 0xfe982b4eec21a033,
	0x90d3a1ad15a46c74, 0x673567022986045a, 0x60e4e90353908565, 0x0818262afd1035d4,
	0x0a9d3dcac416cc70, 0x75d2456f1aaed003, 0x23fa14eb7d64f3b9, 0x142b45730569831f,
	0x20e66e72f95a8890, 0x02cdf7ae5e6236a1, 0x8a1088c614d76fe2, 0x312700cb370db0d7,
	0x7224119b761c39f1, 0x8744a56803189d25, 0xcb23fe42be7f4b15, 0x294ad7ce16d5956f,
	0x82c900b9656be72b, 0xb81101cf44f87330, 0x10692178e8a603a0, 0x9e3eded8c882f5b7,
	0x8f1f586937f175dc, 0xdfbae2fb71ea6702, 0x85c575917e994853, 0xa5b766202fd3180f,
	0x29cfef8fa695de5c, 0xe5cfc955409dc0fb, 0x45a6841c82ef100d, 0xcc442f64b5ed231e,
	0xd14b714b860c91a2, 0xec2f7cf230bbd8f3, 0x02c1f0b1f7604b52, 0xd00536c158b127bb,
	0x2b964038fa293dd4, 0x7f7322218a980413, 0x2cbe7ca1228ffbf4, 0xc200da355a0c611e,
	0xf36d331f8b251c7c, 0x1e8c0f851ffcb160, 0x0093dd4f2333d730, 0x0f59055ccdd8f779,
	0x6625b4e66c800f1e, 0x0b92605b30c47564, 0xb0f3de4acb122dcc, 0x287b60909c113970,
	0x6663a469bc4d3ae9, 0xedc33df8c31467e6, 0x7e97651259083477, 0xa71759d85539c0d4,
	0xff1f3b1ddacacbac, 0xfce768005c0a9535, 0x155e0871bb14aca4, 0x81dff22aed29034b,
	0xebeff5e74dd6eee0, 0xd41fe848e89170c8, 0xf9b62dc87be4cd44, 0x8ef4a5b36ee30242,
	0xe7a2c137f89ca105, 0x8b2daf8b91cafb8f, 0xd233bf92405bd42b, 0xfe6fbd0b0434dbd3,
	0xf91805fbd2df3651, 0xec77cf23481ab0ae, 0x1d2f9c98bca5a027, 0x09c5a7aa48df40b2,
	0x5fefc1f7281bb01f, 0xc92f8cd834a98876, 0xc3a24e2ec4c426c1, 0x54d3544ff83f7a56,
	0x18d318b05aeb94e9, 0xb2fa5a617612c9c5, 0x23da7e8e641c8461, 0xa618de490c88809e,
	0x91ea19a7f127dbae, 0x501974728dd56a6b, 0x800db5ddfc522af3, 0x4d988122f46020e5,
	0x69b41067e4da54fd, 0xcd870cc02bb92c3c, 0x5102ba1583bdcdbe, 0x52e2af4d16c141b3,
	0x2dcf2801677a76a6, 0x0ac01ca0fdb25fe4, 0xcb80bf445ec84831, 0xbaf9dcd270b01613,
	0xa7b02cf19dbad8a9, 0x9d2273de3a5a7450, 0xc702f5bd3be01ab0, 0x4d84d8675d6aa911,
	0x86009598c68aa332, 0xc9107ea79d1024d4, 0x9da904eb19e1cac5, 0xfec86d4bad660577,
	0xc5aab87c171631c3, 0xa24f67ef2614dcb5, 0xe9bcb692ad7837b5, 0xc43f3326f1cf8bf5,
	0xd0fcc778aef021fe, 0x174f247c8af38ce6, 0x7084cf99158b5dee, 0x82c5ae84f16973f9,
	0xadc0304a7b39769a, 0xf54bf5dd7c6dad1b, 0x11c4096fe865cedc, 0x70f8d46865c82c3e,
	0x0fbdae45882e5e7b, 0x87e2b2e64ff2214d, 0xc72c64bd0885fc09, 0x01e7cfa6653d830c,
	0xf045e5822719a244, 0xe24b5a5a715c5353, 0x5ad17f744683fdc4, 0x3c055eec4a60755f,
	0x0407e7ab1515329a, 0x9d711862d281b953, 0xcd4e5632ad47b9f0, 0x2d513a89b289c8e4,
	0x0097a7ad6befbb38, 0x5b72c2d14e8801a9, 0x1631b51c98b135da, 0x75452f58b76a87f5,
	0xd1ce244fe91232be, 0x7612cf9dc8e415b9, 0xae6a5b5548e8530a, 0x684fdf036bfb13ea,
	0xbf862162462ed68a, 0xbd4f5555a3c7e807, 0x1b897f249baa6447, 0x97ea8030f791b69c,
	0x7cd75bf4fefbafc4, 0x41f4782882962436, 0x4c93898e5084174a, 0x943400a764143e7a,
	0x2f6dd8b3bb887fdd, 0x0c6c4173cb9c0495, 0xc7f0f42953419f09, 0xaa406bacde7e73dc,
	0xe24e86fc08ac0f58, 0xccfb6cdd8adce59b, 0xf830dda8500df5f2, 0xcff4b623941769bf,
	0x7329510f153ab785, 0xba6fe0cf794b6344, 0x198c3e42219e1a62, 0x1d79539c29df8552,
	0xebc7ef80d9a01aed, 0xb119094741546b5d, 0xa178642a9c7509e5, 0xc1e9c8670e5123e1,
	0x1751bc8a4463e7ea, 0x997ae12be52d0f04, 0xd67bd4ef8ab68137, 0xe331d22d11e5a8b4,
	0x272a850b3a190751, 0x340084053ef35e19, 0xa31fc02e15e7cfe6, 0xacbd4d2630201ad3,
	0x9ff63ae31f86dff2, 0xa3cd18c5a3133330, 0x1489e5e518965ca7, 0x12d02ef420906555,
	0x5912163aba6cf6a7, 0xa55cc99b3ab818d1, 0xc3f7fb5ab830622a, 0xb791404ba70ea576,
	0x153225dd677bc512, 0x3c8a0c30ce9b9f75, 0x4085cccde159616d, 0x3bc6c2297bf8b1c0,
	0xa85d322e324d2011, 0xd76df5659f75c295, 0x9a31377033271caf, 0x63f094d1c6ce4f49,
	0x09c9855aa28a9a29, 0x9f507248552e7ac2, 0x9c807730cefd7677, 0x5d0b593faf559f6d,
	0x98f05c47eb5b5241, 0xb533a6127f086730, 0x2c2ce7f743bea56e, 0xbf74fc387d7c06ff,
	0x7578d83eedb6f444, 0x717f75f6cd31f959, 0xbe43635c50fde7ae, 0x19b0eecd2cab81af,
	0xbf51bc6d182c5bc1, 0x0bc2eb2eed8665d7, 0x01f6495801ebacd7, 0xd8c695c6ffbecd0b,
	0xc324152be53c92a0, 0x727a27bb76424450, 0xf0bdbc882a990eb7, 0x3f8c4c4d78b4749c,
	0x1e3f9c5ccb3a86a6, 0x569351a9d42975ff, 0x67be918c72d51bba, 0x2726818b1c566a67,
	0x938653526600f80e, 0x96aa3e084a877e7c, 0xf97c0402595c6114, 0xdec976e79615470d,
	0x93d5eaa8ec5f2eca, 0xae637f54b5f95eb5, 0x54be4982904c026d, 0x1d653d229226381b,
	0x7a4288934c12e413, 0x932327e80296fa69, 0x2f6bb0bb9fb1da61, 0xc81bfdb753c7dd4a,
	0xf54749969d66ba9e, 0x1392b2aa9ee71c0d, 0x2c12aef23f928c59, 0x4df0593a22440fd3,
	0x839344c650864195, 0x8aa2efecf5e084fc, 0xc813266bbdf402b8, 0xb50460a629b475cc,
	0x7c0bfff9bd3557a6, 0xb2be17fa74c08216, 0x0d15bddf60f6a79e, 0x30c371d7395526a7,
	0xd3827984936304be, 0xd26865a9d57c8124, 0x56fe95c1c6363f88, 0xd49cdb6d0a3d7556,
	0xa0d4ba241f7327eb, 0x3efb7a51c58e2513, 0x43ee4ab6df9e8cb5, 0xcb1ec9377300374d,
	0x4df1612fbb133df7, 0xa127f9deef84143d, 0x79e75d6a27ab1110, 0x07df0cf379f0cb4e,
	0xcf68059a5e97d066, 0xb271691373cdb442, 0x173165445b06d9cb, 0x2dc748ae1a6ccbf3,
	0xa8717827fcb1853d, 0x8e5c92de4aebfdcb, 0x4c5d01dd5f90ad15, 0xac1a72c38bc79691,
	0x57f8e51b326d9b92, 0x0196845d28416345, 0x4758f862e6b05723, 0xc7a718f38d9c4aff,
	0x8d8c0e7f8ee33e3d, 0x18a304fb9cbdf0dc, 0x9472c75a05fbd976, 0xe636cf9e32e74da7,
};
/* clang-format on */

/* The first boundary in (at, end], or 0. `hash` is carried from call to call. */
static size_t find_boundary(const uint8_t *bytes, size_t at, size_t end, unsigned bits,
                            uint64_t *hash)
{
	uint64_t limit = (uint64_t)1 << (64 - bits);
	uint64_t value = *hash;

	while (at < end) {
		value = (value << 1) + gear[bytes[at++]];
		if (value < limit)
			return at;
	}
	*hash = value;
	return 0;
}

size_t chunk_length(const uint8_t *bytes, size_t length)
{
	size_t target, boundary;
	uint64_t hash = 0;

	if (length > CHUNK_BYTES_MAX)
		length = CHUNK_BYTES_MAX;
	if (length <= CHUNK_BYTES_MIN)
		return length;
	target = length < CHUNK_BYTES_TARGET ? length : CHUNK_BYTES_TARGET;
	for (size_t at = CHUNK_BYTES_MIN - WINDOW_BYTES; at < CHUNK_BYTES_MIN; at++)
		hash = (hash << 1) + gear[bytes[at]];
	boundary = find_boundary(bytes, CHUNK_BYTES_MIN, target, BITS_BEFORE_TARGET, &hash);
	if (!boundary)
		boundary = find_boundary(bytes, target, length, BITS_AFTER_TARGET, &hash);
	return boundary ? boundary : length;
}

bool is_zero(const void *bytes, size_t length)
{
	const uint8_t *at = bytes;

	/* Every byte equals the one before it, and the first is zero. */
	return length == 0 || (at[0] == 0 && memcmp(at, at + 1, length - 1) == 0);
}
